"""Renders finished pictures again from their receipts, in this process, and compares them with what is stored."""

from __future__ import annotations

import hashlib
import io
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image

from latentfarm.batch import Batch
from latentfarm.errors import InputError, JobError, ModelError
from latentfarm.image_formats import IMAGE_FORMATS, JPEG, format_of
from latentfarm.job import JobState
from latentfarm.recovery.bucket_scan import embedded_receipt
from latentfarm.settings import Settings
from latentfarm.storage.bucket import MissingObjectError
from latentfarm.storage.manifest import ManifestReader
from latentfarm.storage.results import read_indices
from latentfarm_worker.build import load_model, make_engine
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.models import Family

#: what a receipt tells of how a picture was made; where all of it is the same here, so are the bytes
CONDITIONS = ("device", "dtype", "slots", "threads", "compiled", "tiled", "exactness")
#: the largest difference of a channel, of 255, under other conditions: in float32, and where a shorter dtype is used
#: (measured with mini, 12 steps: 1 for another number of threads or slots, 25 between float32 and bfloat16)
BOUND, SHORT_BOUND = 2, 64
#: what a JPEG may add to it: numbers that were near a limit are rounded to another step (measured on 17 pictures: 27,
#: where pixels differed by 2)
JPEG_ROOM = 32
#: receipts that are held at once, to render those of like conditions together
_WINDOW = 1_000
#: where a receipt tells none, as one that was rebuilt from a file without metadata
_SLOTS = 8
_SHOWN_CHARACTERS = 60
_FORMATS = tuple(each.pillow for each in IMAGE_FORMATS.values())


@dataclass(frozen=True)
class Verdict:
    """What became of one picture.

    ``differences`` say what is not as it ought to be; none: all is well. ``bound`` is the largest difference of a
    channel, of 255, that was allowed: 0 where the conditions are the same and the bytes must be. ``largest`` is that
    which was found, None where there were no two pictures of one size to compare.
    """

    job: str
    differences: tuple[str, ...]
    bound: int
    same_bytes: bool = False
    largest: int | None = None


def choose(batch: Batch, count: int | None, *, seed: int) -> Iterator[int]:
    """Yield the indices of ``count`` finished pictures in their order, chosen by ``seed``; of all if there are fewer.

    Raises:
        InputError: none is finished.
    """
    done = batch.connection.ledger.batch(batch.name).done
    if not done:
        raise InputError(f"batch {batch.name!r} has no finished picture yet; `latentfarm status {batch.name}`")
    finished = batch.connection.ledger.indices(batch.name, JobState.DONE)
    if count is None or count >= done:
        return finished
    places = set(random.Random(seed).sample(range(done), count))  # noqa: S311 (a choice, no secret)
    return (index for place, index in enumerate(islice(finished, max(places) + 1)) if place in places)


class Verification:
    """One run over pictures of a batch, with the model that the settings name.

    ``dtype`` None takes that of each receipt. ``pixels_only`` compares within the bound even where the conditions are
    the same: for another machine of the kind, or another version of torch.
    """

    def __init__(self, batch: Batch, settings: Settings, *, dtype: str | None, pixels_only: bool = False) -> None:
        self._batch = batch
        self._settings = settings
        self._dtype = dtype
        self._pixels_only = pixels_only
        self._manifest = ManifestReader(batch.connection.bucket)
        self._model = batch.connection.ledger.batch(batch.name).model
        self._family: Family | None = None
        self._loaded: tuple[str, bool] | None = None
        self._own_threads = torch.get_num_threads()
        #: by CPU threads and slots
        self._engines: dict[tuple[int, int], Engine] = {}
        #: under which conditions pictures were rendered again, in words
        self.conditions: set[str] = set()

    def run(self, indices: Iterable[int]) -> Iterator[Verdict]:
        """Yield a verdict for each finished picture, not in order; of 1,000 those of like conditions together.

        Raises:
            ModelError: a picture was made by a model of another digest.
        """
        connection = self._batch.connection
        lines = read_indices(connection.ledger, connection.bucket, self._batch.name, indices)
        while window := list(islice(lines, _WINDOW)):
            window.sort(key=self._setup)
            for setup, group in groupby(window, key=self._setup):
                yield from self._render(self._engine(*setup), list(group))

    def _setup(self, line: dict[str, Any]) -> tuple[str, bool, int, int]:
        """Return dtype, whether to compile, CPU threads and slots to render with: a receipt's, as far as it tells."""
        dtype, compiled = self._dtype or line.get("dtype", "auto"), line.get("compiled", False)
        return dtype, compiled, line.get("threads", self._own_threads), line.get("slots", _SLOTS)

    def _engine(self, dtype: str, compiled: bool, threads: int, slots: int) -> Engine:  # noqa: FBT001 (a sort key's parts)
        settings = self._settings.model_copy(
            update={"dtype": dtype, "compile": compiled, "slots": slots, "deterministic": True}
        )
        if self._family is None or self._loaded != (dtype, compiled):
            # one at a time: a large model fits a device once
            self._engines.clear()
            self._family = None
            self._family = load_model(settings)
            self._loaded = (dtype, compiled)
        # loading may change it
        torch.set_num_threads(threads)
        if compiled or (threads, slots) not in self._engines:
            # a model is compiled for one number of slots
            self._engines[threads, slots] = make_engine(self._family, settings)
        device, used = self._family.device.type, str(self._family.dtype).removeprefix("torch.")
        told = f"{device}, {used}, slots {slots}" + (f", threads {threads}" if device == "cpu" else "")
        self.conditions.add(told + (", compiled" if compiled else ""))
        return self._engines[threads, slots]

    def _render(self, engine: Engine, lines: Sequence[dict[str, Any]]) -> Iterator[Verdict]:
        for line in lines:
            self._require_model(engine.family, line)
        comparison = _Comparison(self._batch, engine, self._model, pixels_only=self._pixels_only)
        waiting, by_name = deque(lines), {line["job"]: line for line in lines}
        while waiting or engine.busy:
            while waiting and engine.free:
                line = waiting.popleft()
                try:
                    engine.admit(self._manifest.job(self._batch.name, line["index"]))
                except (JobError, InputError, MissingObjectError) as error:
                    yield _cannot_render(line["job"], error)
            for outcome in engine.step():
                if isinstance(outcome, Failed):
                    yield _cannot_render(outcome.job.name, outcome.error)
                else:
                    yield comparison.verdict(by_name[outcome.job.name], outcome)

    def _require_model(self, family: Family, line: dict[str, Any]) -> None:
        made_by = line.get("model_digest", family.model_digest)
        if made_by != family.model_digest:
            raise ModelError(
                f"{line['job']} was made by a model with digest {made_by}, and {family.name} has "
                f"{family.model_digest}; name the model of the batch with --model"
            )


def _cannot_render(job: str, error: Exception) -> Verdict:
    return Verdict(job, (f"cannot be rendered again: {error}",), bound=0)


class _Comparison:
    """Holds pictures that were rendered again against what their receipts and the store say."""

    def __init__(self, batch: Batch, engine: Engine, model: str, *, pixels_only: bool) -> None:
        self._bucket = batch.connection.bucket
        self._pixels_only = pixels_only
        # no receipt says whether its worker wrote metadata into the file, so either will do
        self._encoders = [ImageFileEncoder(engine, model=model, embed_metadata=embed) for embed in (True, False)]

    def verdict(self, line: dict[str, Any], picture: Rendered) -> Verdict:
        """Compare one picture."""
        made = self._encoders[0].provenance(picture)
        same_conditions = all(line.get(name) == made.get(name) for name in CONDITIONS)
        bound = 0 if same_conditions and not self._pixels_only else _bound(line, made["dtype"])
        try:
            stored = self._bucket.get(line["key"])
        except MissingObjectError:
            return Verdict(line["job"], (f"the object {line['key']} is not there",), bound)
        files = [encoder.encode(picture) for encoder in self._encoders]
        same_bytes = stored in files
        largest = 0 if same_bytes else _largest_difference(stored, files[0])
        found = _sha256_differs(stored, line["sha256"])
        inside = embedded_receipt(stored, line["key"], line["job"])
        found += _fields_that_differ(line, inside, made, same_conditions=same_conditions)
        if largest is None:
            found.append(f"the object is no picture of {picture.width}x{picture.height}")
        elif bound == 0 and not same_bytes:
            found.append(f"other bytes than rendered again; largest difference {largest}/255")
        elif largest > bound:
            found.append(f"largest difference {largest}/255, more than {bound}/255")
        return Verdict(line["job"], tuple(found), bound, same_bytes, largest)


def _bound(line: dict[str, Any], dtype: str) -> int:
    bound = BOUND if line.get("dtype") == dtype == "float32" else SHORT_BOUND
    return bound + (JPEG_ROOM if format_of(line["key"]) is JPEG else 0)


def _sha256_differs(body: bytes, expected: str) -> list[str]:
    found = hashlib.sha256(body).hexdigest()
    return [] if found == expected else [f"the object has sha256 {found}, its receipt {expected}"]


def _fields_that_differ(
    receipt: dict[str, Any], embedded: dict[str, Any] | None, made: dict[str, Any], *, same_conditions: bool
) -> list[str]:
    """Say of which fields the receipt, the picture's own metadata and what was made now tell different things."""
    # a plan's numbers come from a fit, whose last bits are the machine's own
    excused = set() if same_conditions else {*CONDITIONS, "plan"}
    told = {
        "in the receipt": _flat(receipt),
        "in the picture": _flat(embedded or {}),
        "rendered again": {name: value for name, value in _flat(made).items() if name not in excused},
    }
    found = []
    for name in _flat(made):
        values = {where: fields[name] for where, fields in told.items() if name in fields}
        if any(one != other for one, other in pairwise(values.values())):
            found.append(f"{name}: " + ", ".join(f"{_shown(value)} {where}" for where, value in values.items()))
    return found


def _flat(provenance: dict[str, Any]) -> dict[str, Any]:
    fields = {**provenance, **provenance.get("request", {})}
    return {name: value for name, value in fields.items() if name != "request"}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _largest_difference(stored: bytes, again: bytes) -> int | None:
    """Return the largest difference of a channel between two files; None if the first is no picture of that size."""
    ours = _decoded(again)
    try:
        with Image.open(io.BytesIO(stored), formats=_FORMATS) as image:
            # before anything is unpacked: a file may claim gigabytes
            if image.size != (ours.shape[1], ours.shape[0]):
                return None
        theirs = _decoded(stored)
    except (OSError, SyntaxError, ValueError):
        return None
    return int(np.abs(theirs - ours).max())


def _decoded(body: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    with Image.open(io.BytesIO(body), formats=_FORMATS) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)
