"""Render finished images again from their receipts, in this process, and compare them with the stored files."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from math import ceil
from typing import Any, NamedTuple

import torch

from latentfarm.batch import Batch
from latentfarm.errors import InputError, JobError, ModelError
from latentfarm.job_state import JobState
from latentfarm.settings import Settings
from latentfarm.storage.bucket import MissingObjectError
from latentfarm.storage.manifest import ManifestReader
from latentfarm.storage.results import read_indices
from latentfarm_worker.adapters.base import UsedAdapter
from latentfarm_worker.build import load_model, make_engine
from latentfarm_worker.compilation import compile_or_run_eagerly, wants_compiling
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.input_images.reader import InputReader
from latentfarm_worker.models import Family
from latentfarm_worker.tools.comparison import Comparison, ComparisonResult, cannot_render
from latentfarm_worker.tools.span_replay import can_replay, replay, spans_of

#: receipts sorted at once, so that images of the same conditions are rendered together
_WINDOW = 1_000


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
        comparison = Comparison(self._batch, engine, self._model, tolerance=self._tolerance)
        replayed = [] if engine.family.compiled else [line for line in lines if can_replay(engine.family, line)]
        waiting, by_name = deque(line for line in lines if line not in replayed), {line["job"]: line for line in lines}
        while waiting or engine.busy:
            while waiting and engine.free:
                line = waiting.popleft()
                try:
                    engine.admit(self._prepare(engine, line))
                except (JobError, InputError, MissingObjectError) as error:
                    yield cannot_render(line["job"], error)
            for outcome in engine.step():
                yield comparison.compare(by_name[outcome.job.name], outcome)
        for line in replayed:
            try:
                yield comparison.compare(line, self._replay(self._prepare(engine, line), line))
            except (JobError, InputError, MissingObjectError) as error:
                yield cannot_render(line["job"], error)

    def _prepare(self, engine: Engine, line: dict[str, Any]) -> ImageState:
        """Return the image of a line, with its inputs and the adapters of its receipt."""
        job = self._manifest.job(self._batch.name, line["index"])
        assert self._inputs is not None  # noqa: S101 (there is an engine)
        image = engine.prepare(job, inputs=self._inputs.read(job), finish=True)
        _require_adapters(image.adapters, line)
        return image

    def _replay(self, image: ImageState, line: dict[str, Any]) -> Rendered | Failed:
        """Render an image in its spans, with an engine for the rows of each."""
        setup = self._setup(line)

        def engine_of(rows: int, second: bool) -> Engine:  # noqa: FBT001 (as of EngineOf)
            return self._engine(
                setup._replace(micro_batch=rows, pixels=setup.decoded_pixels if second else setup.pixels)
            )

        return replay(image.job, image.inputs, spans_of(line), engine_of)

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
        engine = make_engine(family, settings)
    else:
        if wants_compiling(family, settings):
            # again for each engine, so that no number of them reaches the compiler's limit
            compile_or_run_eagerly(family, settings.model_copy(update={"micro_batch": micro_batch}))
        engine = Engine(family, slots=micro_batch // 2, micro_batch=micro_batch, decode_group=decode_group)
    # each image shows by itself that its bytes are those of its row
    engine.shares_beginnings = False
    return engine


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
