"""What this machine makes of a model: pictures a second by slots, and where a picture's time goes.

It runs the worker's own engine, encoder and store, without a queue: what a farm of such machines can do at most.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from statistics import fmean

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm.storage.bucket import Bucket
from latentfarm_worker.engine.decoder import Failed, Rendered
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.images.receipt import ImageEncoder
from latentfarm_worker.models.base import Family

_THREADS = 4
#: pictures of one measurement: each slot is used so often
_ROUNDS = 2


@dataclass(frozen=True)
class Measurement:
    """What one number of slots gave. Seconds are those of one picture.

    ``text_s``, ``denoise_s`` and ``decode_s`` are the device's, one after the other; ``encode_s`` and ``upload_s`` go
    on beside them, on threads, ``upload_s`` is None without a store. ``busy_share`` is the engine's share of the time.
    ``memory_bytes`` is the device's largest use, None on a CPU.
    """

    slots: int
    images: int
    images_per_s: float
    text_s: float
    denoise_s: float
    decode_s: float
    encode_s: float
    upload_s: float | None
    busy_share: float
    memory_bytes: int | None


def measure(
    family: Family, slots_tried: Sequence[int], *, job: Job, compiled: bool, bucket: Bucket | None = None
) -> Iterator[Measurement]:
    """Yield a measurement for each number of slots, until memory ends it; ``job`` says what is rendered.

    Its seeds are its own and those that follow, and every picture has a prompt of its own. With a ``bucket`` pictures
    are put there, below ``probe/``, and removed again.

    Raises:
        JobError: the job itself cannot be rendered, or not even one slot fits.
    """
    for slots in slots_tried:
        if compiled:
            family.compile([2 * slots])
        try:
            yield _measure(Engine(family, slots=slots), job, bucket)
        except JobError as error:
            if error.code != "oom" or slots == slots_tried[0]:
                raise
            return


class _Sink:
    """Encodes pictures and puts them into the bucket, if there is one, on threads; it removes them at the end."""

    def __init__(self, engine: Engine, bucket: Bucket | None) -> None:
        self._encoder = ImageEncoder(engine, model="bench", embed_metadata=True)
        self._bucket = bucket
        self._prefix = f"probe/bench-{secrets.token_hex(8)}"
        self._pool = ThreadPoolExecutor(_THREADS)
        self._stored: list[Future[tuple[float, float]]] = []

    def take(self, picture: Rendered) -> None:
        self._stored.append(self._pool.submit(self._store, picture, f"{self._prefix}-{len(self._stored)}"))

    def _store(self, picture: Rendered, key: str) -> tuple[float, float]:
        began = time.perf_counter()
        body = self._encoder.encode(picture)
        encoded = time.perf_counter()
        if self._bucket is not None:
            self._bucket.put(key, body)
        return encoded - began, time.perf_counter() - encoded

    def seconds(self) -> tuple[float, float]:
        """Wait for all; return the mean seconds of encoding and of putting one."""
        times = [stored.result() for stored in self._stored]
        return fmean(encode_s for encode_s, _ in times), fmean(upload_s for _, upload_s in times)

    def close(self) -> None:
        self._pool.shutdown()
        if self._bucket is not None:
            self._bucket.delete([f"{self._prefix}-{number}" for number in range(len(self._stored))])


def _measure(engine: Engine, job: Job, bucket: Bucket | None) -> Measurement:
    engine.warm_up()
    device, images = engine.family.device, _ROUNDS * engine.slots
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(images):
        own = {"index": number, "seed": job.seed + number, "prompt": f"{job.prompt}, number {number}"}
        engine.admit(job.model_copy(update=own))
    with closing(_Sink(engine, bucket)) as sink:
        began = time.perf_counter()
        engine_s, pictures = _run(engine, sink)
        encode_s, upload_s = sink.seconds()
        wall_s = time.perf_counter() - began

    def mean(name: str) -> float:
        return fmean(picture.timings[name] for picture in pictures)

    return Measurement(
        slots=engine.slots,
        images=images,
        images_per_s=images / wall_s,
        text_s=mean("text"),
        denoise_s=engine_s / images - mean("text") - mean("decode"),
        decode_s=mean("decode"),
        encode_s=encode_s,
        upload_s=upload_s if bucket is not None else None,
        busy_share=engine_s / wall_s,
        memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def _run(engine: Engine, sink: _Sink) -> tuple[float, list[Rendered]]:
    """Render what was admitted; return the engine's seconds and the pictures."""
    pictures: list[Rendered] = []
    engine_s = 0.0
    while engine.busy:
        began = time.perf_counter()
        outcomes = engine.step()
        engine_s += time.perf_counter() - began
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                raise outcome.error
            if outcome.slots < engine.slots:
                # it shrank, and measures something else from here on
                raise JobError("oom", f"{engine.slots} slots do not fit into the device's memory")
            pictures.append(outcome)
            sink.take(outcome)
    return engine_s, pictures
