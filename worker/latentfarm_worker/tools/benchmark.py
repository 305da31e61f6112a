"""Measure a model on this machine: images per second by the size of the micro-batch, and the time of each stage.

It runs the worker's engine, encoder and uploads without a queue, which gives the upper limit for a farm.
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
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm_worker.build import make_engine
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.outcomes import Failed, Rendered
from latentfarm_worker.engine.sampling_plan import plan_for
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.models.base import Family

_THREADS = 4
#: how often each slot is used in one measurement
_ROUNDS = 2
#: of an image of the warm-up: a first step may differ from later ones
_WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Measurement:
    """The measurement of one size of the micro-batch.

    Attributes:
        micro_batch: rows of one call of the model; a guided image takes two.
        slots: guided images denoised at once.
        compiled: whether the model ran compiled.
        warm_up_images: images rendered before the timing began, of the same size and as many at once.
        warm_up_s: seconds of that warm-up.
        images: images rendered and timed.
        images_per_s: images per second of wall time.
        text_s: seconds of text encoding for each image, on the device.
        denoise_s: seconds of denoising for each image, on the device.
        decode_s: seconds of decoding for each image, on the device.
        encode_s: seconds of encoding for each image, on other threads at the same time.
        upload_s: seconds of uploading for each image, on other threads; None without a bucket.
        busy_share: share of the wall time in which the engine worked.
        memory_bytes: peak of allocated device memory; None on a CPU.
    """

    micro_batch: int
    slots: int
    compiled: bool
    warm_up_images: int
    warm_up_s: float
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
    family: Family, settings: Settings, micro_batches: Sequence[int], *, job: Job, bucket: Bucket | None = None
) -> Iterator[Measurement]:
    """Yield a measurement for each micro-batch, up to the first that does not fit into memory.

    Args:
        family: the model.
        settings: those of a worker.
        micro_batches: rows, even and ascending.
        job: what to render; image n gets the seed ``job.seed + n`` and a prompt of its own.
        bucket: upload the images below ``probe/``, and remove them afterwards [default: no upload].

    Raises:
        JobError: The job itself cannot be rendered, or even the first micro-batch does not fit.
    """
    for rows in micro_batches:
        # compiled again for each size, so that no number of them reaches the compiler's limit; and no text comes from
        # the disk, which an earlier run has filled
        update = {"micro_batch": rows, "embedding_cache_bytes": 0}
        engine = make_engine(family, settings.model_copy(update=update))
        try:
            yield _measure(engine, job, bucket)
        except JobError as error:
            if error.code != "oom" or rows == micro_batches[0]:
                raise
            return


class _Sink:
    """Encode images and upload them to the bucket, if there is one, on threads; remove them on close."""

    def __init__(self, engine: Engine, bucket: Bucket | None) -> None:
        self._encoder = ImageFileEncoder(engine, model="bench", embed_metadata=True)
        self._bucket = bucket
        self._prefix = f"probe/bench-{secrets.token_hex(8)}"
        self._pool = ThreadPoolExecutor(_THREADS)
        self._stored: list[Future[tuple[float, float]]] = []

    def add(self, image: Rendered) -> None:
        self._stored.append(self._pool.submit(self._store, image, f"{self._prefix}-{len(self._stored)}"))

    def _store(self, image: Rendered, key: str) -> tuple[float, float]:
        began = time.perf_counter()
        body = self._encoder.encode(image)
        encoded = time.perf_counter()
        if self._bucket is not None:
            self._bucket.put(key, body)
        return encoded - began, time.perf_counter() - encoded

    def seconds(self) -> tuple[float, float]:
        """Wait for all images; return the mean seconds of encoding and of uploading one."""
        times = [stored.result() for stored in self._stored]
        return fmean(encode_s for encode_s, _ in times), fmean(upload_s for _, upload_s in times)

    def close(self) -> None:
        self._pool.shutdown()
        if self._bucket is not None:
            self._bucket.delete([f"{self._prefix}-{number}" for number in range(len(self._stored))])


def _measure(engine: Engine, job: Job, bucket: Bucket | None) -> Measurement:
    began = time.perf_counter()
    _warm_up(engine, job, bucket)
    warm_up_s = time.perf_counter() - began
    device, images = engine.family.device, _ROUNDS * engine.slots
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    _admit(engine, job, images)
    with closing(_Sink(engine, bucket)) as sink:
        began = time.perf_counter()
        engine_s, rendered = _run(engine, sink)
        encode_s, upload_s = sink.seconds()
        wall_s = time.perf_counter() - began

    def mean(name: str) -> float:
        return fmean(image.timings[name] for image in rendered)

    return Measurement(
        micro_batch=engine.micro_batch,
        slots=engine.slots,
        # other sizes than the native one run uncompiled
        compiled=engine.family.compiled and _is_native(job, engine.family),
        warm_up_images=engine.slots,
        warm_up_s=warm_up_s,
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


def _is_native(job: Job, family: Family) -> bool:
    return job.width in {None, family.native_width} and job.height in {None, family.native_height}


def _warm_up(engine: Engine, job: Job, bucket: Bucket | None) -> None:
    """Render a full batch of short jobs on the path that is timed.

    A device chooses its kernels at the first call with each shape, libraries are loaded at their first use, and a
    bucket's connections are opened at the first upload.
    """
    engine.warm_up()
    # of as many steps as the timed jobs
    plan_for(engine.family.scheduler_config, job.scheduler, job.scheduler_options, job.num_inference_steps)
    # prompts of its own: a text that was encoded once is not encoded again
    short = {"num_inference_steps": _WARM_UP_STEPS, "prompt": f"{job.prompt} to warm up"}
    _admit(engine, job.model_copy(update=short), engine.slots)
    with closing(_Sink(engine, bucket)) as sink:
        _run(engine, sink)
        sink.seconds()


def _admit(engine: Engine, job: Job, count: int) -> None:
    for number in range(count):
        own = {"index": number, "seed": job.seed + number, "prompt": f"{job.prompt}, number {number}"}
        engine.admit(job.model_copy(update=own))


def _run(engine: Engine, sink: _Sink) -> tuple[float, list[Rendered]]:
    """Render the admitted jobs; return the engine's seconds and the images."""
    images: list[Rendered] = []
    engine_s = 0.0
    while engine.busy:
        began = time.perf_counter()
        outcomes = engine.step()
        engine_s += time.perf_counter() - began
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                raise outcome.error
            images.append(outcome)
            sink.add(outcome)
        if engine.usable_slots < engine.slots:
            # the engine has reduced its batch, so this would measure another one
            raise JobError("oom", f"{engine.slots} slots do not fit into the device's memory")
    return engine_s, images
