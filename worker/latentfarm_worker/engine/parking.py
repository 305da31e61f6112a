"""Images that are put down midway: suspended, to go on in this engine, or parked, to go on in any."""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Iterator, Sequence
from itertools import chain

import torch

from latentfarm_worker.engine.admission import AdmissionQueue
from latentfarm_worker.engine.continuation import checkpoint_of
from latentfarm_worker.engine.image_checkpoint import ImageCheckpoint
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.outcomes import Parked
from latentfarm_worker.engine.running_images import RunningImages
from latentfarm_worker.models.base import Family


class Parking:
    """Puts images of an engine down.

    Args:
        family: the loaded model.
        running, queue: the images.
    """

    def __init__(self, family: Family, running: RunningImages, queue: AdmissionQueue[ImageState]) -> None:
        self._family = family
        self._running = running
        self._queue = queue

    def keep(self, images: Sequence[ImageState]) -> None:
        """Let running images go on from where they are when they begin again. They wait for the device."""
        for image, checkpoint in zip(images, self._read(images), strict=True):
            image.checkpoint = checkpoint

    def make_way(self) -> None:
        """Suspend the running images that are not urgent if the first one is and cannot run together with them.

        They go on, with the same numbers, before any image begins that is not urgent.
        """
        key = self._queue.urgent_key()
        if key is None or self._running.key in (None, key):
            return
        images = [image for image in self._running if not image.urgent]
        self.keep(images)
        for image in images:
            self._running.remove(image)
            image.restart()
            image.queued = image.put_down = time.perf_counter()
        for image in reversed(images):
            self._queue.resume(image)

    def park(self, handles: Collection[Hashable]) -> list[Parked]:
        """Take images out of the engine; as ``Engine.park``."""
        running, waiting = (
            [image for image in images if image.handle in handles and _has_progress(image)]
            for images in (self._running, self._queue)
        )
        fresh = [image for image in (*running, *waiting) if image.place >= 0 or image.checkpoint is None]
        made = dict(zip(fresh, self._read(fresh), strict=True))
        for image in running:
            self._running.remove(image)
        for image in waiting:
            self._queue.remove(image)
        # what was suspended has its checkpoint
        checkpoints = {image: made.get(image, image.checkpoint) for image in (*running, *waiting)}
        return [Parked(image.job, image.handle, found) for image, found in checkpoints.items() if found is not None]

    def paused(self) -> list[tuple[Hashable, float]]:
        """Return the images that urgent ones have put down; as ``Engine.paused``."""
        now = time.perf_counter()
        images = {image: image.put_down for image in (*self._running, *self._queue)}
        return [(image.handle, now - since) for image, since in images.items() if since]

    def _read(self, images: Sequence[ImageState]) -> list[ImageCheckpoint]:
        """Return the checkpoints of images that run or wait for their second stage, with one copy off the device."""
        for image in images:
            if image.place >= 0:
                image.leave()
        columns = [self._columns(image) for image in images]
        frames = [image.all_frames for image in images]
        host = iter(_copy([*chain(*(each.values() for each in columns)), *chain(*frames)]))
        copied = [{at: next(host) for at in each} for each in columns]
        return [
            checkpoint_of(self._family, image, own, [next(host) for _ in latents])
            for image, own, latents in zip(images, copied, frames, strict=True)
        ]

    def _columns(self, image: ImageState) -> dict[int, torch.Tensor]:
        if image.place < 0:
            assert image.origin is not None  # noqa: S101 (it waits for its second stage)
            return {0: image.origin.initial}
        assert self._running.batch is not None  # noqa: S101 (it runs)
        return self._running.batch.columns(image)


def _has_progress(image: ImageState) -> bool:
    """Return whether evaluations were made since the image was prepared."""
    return image.evaluations_done > (0 if image.given is None else image.given.evaluations)


def _copy(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return copies of float32 tensors on the host; those on the device are copied at once."""
    on_device = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    copied: Iterator[torch.Tensor] = iter(())
    if on_device:
        together = torch.cat([tensor.reshape(-1) for tensor in on_device]).cpu()
        copied = iter(torch.split(together, [tensor.numel() for tensor in on_device]))
    # each in memory of its own, which is freed with it
    return [
        (tensor if tensor.device.type == "cpu" else next(copied).reshape(tensor.shape)).clone() for tensor in tensors
    ]
