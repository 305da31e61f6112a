"""Render finished images again from their receipts, in this process, and compare them with the stored files."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from latentfarm.batch import Batch
from latentfarm.errors import InputError, JobError, ModelError
from latentfarm.image_formats import JPEG, PILLOW_FORMATS, format_of
from latentfarm.job_state import JobState
from latentfarm.settings import Settings
from latentfarm.storage.bucket import MissingObjectError
from latentfarm.storage.embedded_receipt import embedded_receipt
from latentfarm.storage.manifest import ManifestReader
from latentfarm.storage.results import read_indices
from latentfarm_worker.adapters.base import UsedAdapter
from latentfarm_worker.build import load_model, make_engine
from latentfarm_worker.compilation import compile_or_run_eagerly, wants_compiling
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.input_images.reader import InputReader
from latentfarm_worker.models import Family

#: fields that describe a device, so they say nothing if the devices are of two kinds
_OF_THE_DEVICE = ("device_name", "cudnn", "processor", "instruction_set", "threads")
#: the fields of a receipt that an image's bytes depend on; if all are equal, the bytes must be
CONDITIONS = (
    "device",
    *_OF_THE_DEVICE,
    "torch",
    "dtype",
    "quantization",
    "text_encoder",
    "text_encoder_quantization",
    "micro_batch",
    "decode_group",
    "compiled",
    "tiled",
    "deterministic",
)
#: the largest allowed difference of a channel, of 255, under other conditions: in float32, and in a shorter dtype
#: (measured with mini, 12 steps: 1 for another number of threads or slots, 25 between float32 and bfloat16)
TOLERANCE, SHORT_DTYPE_TOLERANCE = 2, 64
#: added for a JPEG, whose quantisation amplifies small differences (measured on 17 images: 27 from a difference of 2)
JPEG_TOLERANCE = 32
#: receipts sorted at once, so that images of the same conditions are rendered together
_WINDOW = 1_000
_MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class ComparisonResult:
    """The result for one image.

    Attributes:
        job: the job's name.
        differences: what differs from the receipt or from the image rendered again; empty if the image passes.
        tolerance: the largest allowed difference of a channel, of 255; 0 if the bytes must be equal.
        other_conditions: the conditions that differ from the receipt's; then the bytes may differ.
        same_bytes: the file has the same bytes as the one rendered again.
        largest_difference: the largest difference of a channel; None if there are no two images of one size.
    """

    job: str
    differences: tuple[str, ...]
    tolerance: int
    other_conditions: tuple[str, ...] = ()
    same_bytes: bool = False
    largest_difference: int | None = None


class ModelSetup(NamedTuple):
    """The settings of a worker's model, by their names, as a receipt has them."""

    dtype: str
    quantization: str
    text_encoder: str
    text_encoder_quantization: str
    compile: bool


class Setup(NamedTuple):
    """The model and the engine of a receipt, with defaults for what it lacks."""

    model: ModelSetup
    threads: int
    #: rows of a call of the model at this size; 0 for a receipt without it: as a worker chooses it
    micro_batch: int
    #: images in a call of the decoder at this size
    decode_group: int
    pixels: int
    #: of the image that is decoded: more, after a second stage
    decoded_pixels: int


def sample_finished(batch: Batch, count: int | None, *, seed: int) -> Iterator[int]:
    """Yield the indices of ``count`` finished images in ascending order, chosen at random by ``seed``.

    Yield all if ``count`` is None or too large.

    Raises:
        InputError: No image is finished.
    """
    done = batch.connection.ledger.batch(batch.name).done
    if not done:
        raise InputError(f"batch {batch.name!r} has no finished image yet; `latentfarm status {batch.name}`")
    finished = batch.connection.ledger.indices(batch.name, JobState.DONE)
    if count is None or count >= done:
        return finished
    positions = set(random.Random(seed).sample(range(done), count))  # noqa: S311 (a choice, no secret)
    return (index for position, index in enumerate(islice(finished, max(positions) + 1)) if position in positions)


class Verification:
    """Render images of one batch again and compare them, with the model that the settings name.

    Args:
        batch: the batch.
        settings: the model and its source; the other conditions are those of each receipt.
        dtype: render with this dtype [default: that of each receipt].
        tolerance: compare within the tolerance even under equal conditions: for another machine of the same kind, or
            another version of torch.
    """

    def __init__(self, batch: Batch, settings: Settings, *, dtype: str | None, tolerance: bool = False) -> None:
        self._batch = batch
        self._settings = settings
        self._dtype = dtype
        self._tolerance = tolerance
        self._manifest = ManifestReader(batch.connection.bucket)
        self._model = batch.connection.ledger.batch(batch.name).model
        self._family: Family | None = None
        #: makes inputs for the family
        self._inputs: InputReader | None = None
        self._loaded: ModelSetup | None = None
        self._default_threads = torch.get_num_threads()
        #: by CPU threads, micro-batch and decoder's group
        self._engines: dict[tuple[int, int, int], Engine] = {}
        #: descriptions of the conditions under which images were rendered again
        self.conditions: set[str] = set()

    def run(self, indices: Iterable[int]) -> Iterator[ComparisonResult]:
        """Yield a result for each finished image; within each 1,000 they are ordered by their conditions.

        Raises:
            ModelError: The digest of the model differs from that in a receipt.
        """
        connection = self._batch.connection
        lines = map(_upgrade, read_indices(connection.ledger, connection.bucket, self._batch.name, indices))
        while window := list(islice(lines, _WINDOW)):
            window.sort(key=self._setup)
            for setup, group in groupby(window, key=self._setup):
                yield from self._render(self._engine(setup), list(group))

    def _setup(self, line: dict[str, Any]) -> Setup:
        request = line.get("request", {})
        model = ModelSetup(
            dtype=self._dtype or line.get("dtype", "auto"),
            quantization=line.get("quantization", "none"),
            # the other placements give equal bits
            text_encoder="cpu" if "text_encoder" in line else "auto",
            text_encoder_quantization=line.get("text_encoder_quantization", "none"),
            compile=line.get("compiled", False),
        )
        return Setup(
            model=model,
            threads=line.get("threads", self._default_threads),
            micro_batch=line.get("micro_batch", 0),
            decode_group=line.get("decode_group", 1),
            pixels=_pixels_of(request),
            decoded_pixels=_pixels_of(line.get("hires", request)),
        )

    def _engine(self, setup: Setup) -> Engine:
        model, threads, rows, images, pixels, decoded_pixels = setup
        # no prompt is read from a cache: what is verified is computed again
        others = {"deterministic": True, "slots": 0, "embedding_cache_bytes": 0}
        settings = self._settings.model_copy(update={**model._asdict(), **others})
        if self._family is None or self._loaded != model:
            # free the old model first: a large one fits on a device only once
            self._engines.clear()
            self._family = None
            self._family = load_model(settings)
            self._inputs = InputReader(self._batch.connection.bucket, self._family)
            self._loaded = model
        # after loading, which may change the number of threads
        torch.set_num_threads(threads)
        # calls with larger images than the native size have fewer rows and images, in inverse proportion
        native = self._family.native_width * self._family.native_height
        micro_batch = 2 * ceil(rows * max(1.0, pixels / native) / 2)
        group = ceil(images * max(1.0, decoded_pixels / native))
        wanted = (threads, micro_batch, group)
        if model.compile or wanted not in self._engines:
            self._engines[wanted] = _make_engine(self._family, settings, micro_batch, group)
        engine = self._engines[wanted]
        self.conditions.add(_describe(engine, threads))
        return engine

    def _render(self, engine: Engine, lines: Sequence[dict[str, Any]]) -> Iterator[ComparisonResult]:
        for line in lines:
            self._require_model(engine.family, line)
        comparison = _Comparison(self._batch, engine, self._model, tolerance=self._tolerance)
        waiting, by_name = deque(lines), {line["job"]: line for line in lines}
        while waiting or engine.busy:
            while waiting and engine.free:
                line = waiting.popleft()
                try:
                    job = self._manifest.job(self._batch.name, line["index"])
                    assert self._inputs is not None  # noqa: S101 (there is an engine)
                    image = engine.prepare(job, inputs=self._inputs.read(job))
                    _require_adapters(image.adapters, line)
                    engine.admit(image)
                except (JobError, InputError, MissingObjectError) as error:
                    yield _cannot_render(line["job"], error)
            for outcome in engine.step():
                if isinstance(outcome, Failed):
                    yield _cannot_render(outcome.job.name, outcome.error)
                else:
                    yield comparison.compare(by_name[outcome.job.name], outcome)

    def _require_model(self, family: Family, line: dict[str, Any]) -> None:
        digest = line.get("model_digest", family.model_digest)
        if digest != family.model_digest:
            raise ModelError(
                f"{line['job']} was rendered by a model with digest {digest}, and {family.name} has "
                f"{family.model_digest}; name the model of the batch with --model"
            )


def _require_adapters(ours: Iterable[UsedAdapter], line: dict[str, Any]) -> None:
    """Check that the adapters of an image are those of its receipt.

    Raises:
        JobError: code ``adapter_changed``: one has other content here.
    """
    theirs = {(each["kind"], each["name"]): each["sha256"] for each in line.get("adapters", [])}
    for name, kind, sha256 in ours:
        before = theirs.get((kind, name), sha256)
        if before != sha256:
            raise JobError(
                "adapter_changed",
                f"{kind} {name!r} had the sha256 {before}, and here it has {sha256}; set LATENTFARM_ADAPTERS to the "
                "file of that time",
            )


def _pixels_of(entry: Mapping[str, Any]) -> int:
    """Return the pixels of an entry with a width and a height; 0 for a receipt without them."""
    return int(entry.get("width", 0) * entry.get("height", 0))


def _make_engine(family: Family, settings: Settings, micro_batch: int, decode_group: int) -> Engine:
    """Return an engine with these sizes, without a measurement of others; for a receipt without them, a worker's."""
    if not micro_batch:
        return make_engine(family, settings)
    if wants_compiling(family, settings):
        # again for each engine, so that no number of them reaches the compiler's limit
        compile_or_run_eagerly(family, settings.model_copy(update={"micro_batch": micro_batch}))
    return Engine(family, slots=micro_batch // 2, micro_batch=micro_batch, decode_group=decode_group)


def _describe(engine: Engine, threads: int) -> str:
    """Return the conditions of an engine, for a person."""
    family = engine.family
    parts = ["cpu" if family.device.type == "cpu" else torch.cuda.get_device_name(family.device)]
    parts += [str(family.dtype).removeprefix("torch."), f"micro-batch {engine.micro_batch}"]
    parts += [f"threads {threads}"] * (family.device.type == "cpu") + ["compiled"] * family.compiled
    return ", ".join(parts)


def _upgrade(line: dict[str, Any]) -> dict[str, Any]:
    """Return a receipt with the field names of today."""
    return {**line, "deterministic": False} if line.get("exactness") == "free" else line


def _cannot_render(job: str, error: Exception) -> ComparisonResult:
    return ComparisonResult(job, (f"cannot be rendered again: {error}",), tolerance=0)


class _Comparison:
    """Compare images that were rendered again with their receipts and their stored files."""

    def __init__(self, batch: Batch, engine: Engine, model: str, *, tolerance: bool) -> None:
        self._bucket = batch.connection.bucket
        self._tolerance = tolerance
        # a receipt does not say whether the file has metadata, so both forms are accepted
        self._encoders = [ImageFileEncoder(engine, model=model, embed_metadata=embed) for embed in (True, False)]

    def compare(self, line: dict[str, Any], image: Rendered) -> ComparisonResult:
        rendered = self._encoders[0].provenance(image)
        others = _other_conditions(line, rendered)
        tolerance = _tolerance(line, rendered) if others or self._tolerance else 0
        try:
            stored = self._bucket.get(line["key"])
        except MissingObjectError:
            return ComparisonResult(line["job"], (f"the object {line['key']} is missing",), tolerance, others)
        files = [encoder.encode(image) for encoder in self._encoders]
        same_bytes = stored in files
        largest = 0 if same_bytes else _largest_difference(stored, files[0])
        found = _sha256_differs(stored, line["sha256"])
        embedded = embedded_receipt(stored, line["key"], line["job"])
        found += _fields_that_differ(line, embedded, rendered, same_conditions=not others)
        if largest is None:
            found.append(f"the object is not an image of {image.width}x{image.height}")
        elif tolerance == 0 and not same_bytes:
            found.append(f"the bytes differ from the image rendered again; largest difference {largest}/255")
        elif largest > tolerance:
            found.append(f"largest difference {largest}/255, more than {tolerance}/255")
        return ComparisonResult(line["job"], tuple(found), tolerance, others, same_bytes, largest)


def _other_conditions(receipt: dict[str, Any], rendered: dict[str, Any]) -> tuple[str, ...]:
    """Return a description of each condition that is not as in the receipt."""
    differ = [name for name in CONDITIONS if receipt.get(name) != rendered.get(name)]
    if "device" in differ:
        differ = [name for name in differ if name not in _OF_THE_DEVICE]
    # older receipts have fewer fields
    missing = [name for name in differ if name not in receipt]
    known = [
        f"{name}: {receipt[name]} in the receipt, {rendered.get(name, 'none')} here"
        for name in differ
        if name not in missing
    ]
    return (*known, *([f"not in the receipt: {', '.join(missing)}"] if missing else []))


def _tolerance(line: dict[str, Any], rendered: dict[str, Any]) -> int:
    exact = line.get("dtype") == rendered["dtype"] == "float32" and "quantization" not in rendered
    tolerance = TOLERANCE if exact else SHORT_DTYPE_TOLERANCE
    return tolerance + (JPEG_TOLERANCE if format_of(line["key"]) is JPEG else 0)


def _sha256_differs(body: bytes, expected: str) -> list[str]:
    found = hashlib.sha256(body).hexdigest()
    return [] if found == expected else [f"the object has sha256 {found}, its receipt {expected}"]


def _fields_that_differ(
    receipt: dict[str, Any], embedded: dict[str, Any] | None, rendered: dict[str, Any], *, same_conditions: bool
) -> list[str]:
    """Return a description of each field whose values differ between receipt, file and the image rendered again."""
    # a plan's coefficients are fitted, so their last bits, and with them the digest, depend on the machine
    ignored = set() if same_conditions else {*CONDITIONS, "plan", "hires", "refinement"}
    sources = {
        "in the receipt": _flatten(receipt),
        "in the image": _flatten(embedded or {}),
        # as JSON, which has lists and no tuples
        "rendered again": {
            name: value for name, value in _flatten(json.loads(json.dumps(rendered))).items() if name not in ignored
        },
    }
    found = []
    for name in _flatten(rendered):
        values = {where: fields[name] for where, fields in sources.items() if name in fields}
        if any(one != other for one, other in pairwise(values.values())):
            found.append(f"{name}: " + ", ".join(f"{_abbreviate(value)} {where}" for where, value in values.items()))
    return found


def _flatten(provenance: dict[str, Any]) -> dict[str, Any]:
    fields = {**provenance, **provenance.get("request", {})}
    return {name: value for name, value in fields.items() if name != "request"}


def _abbreviate(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[: _MAX_SHOWN_CHARACTERS - 3]}..."


def _largest_difference(stored: bytes, rendered: bytes) -> int | None:
    """Return the largest difference of a channel between two files; None if the first is no image of that size."""
    ours = _decoded(rendered)
    try:
        with Image.open(io.BytesIO(stored), formats=PILLOW_FORMATS) as image:
            # check the size before decoding: a forged file may claim gigabytes
            if image.size != (ours.shape[1], ours.shape[0]):
                return None
        theirs = _decoded(stored)
    except (OSError, SyntaxError, ValueError):
        return None
    return int(np.abs(theirs - ours).max())


def _decoded(body: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    with Image.open(io.BytesIO(body), formats=PILLOW_FORMATS) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)
