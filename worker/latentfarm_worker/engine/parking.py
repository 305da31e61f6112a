"""Images that are put down midway: suspended, to go on in this engine, or parked, to go on in any."""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from itertools import chain

import torch

from latentfarm_worker.engine.admission import AdmissionQueue
from latentfarm_worker.engine.continuation import checkpoint_of
from latentfarm_worker.engine.decoder import Decoder
from latentfarm_worker.engine.image_checkpoint import ImageCheckpoint
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.outcomes import Parked
from latentfarm_worker.engine.running_images import RunningImages
from latentfarm_worker.engine.sampling_plan import HISTORY
from latentfarm_worker.models.base import Family


class Parking:
    """Puts images of an engine down.

    Args:
        family: the loaded model.
        running, queue, decoder: the images.
    """

    def __init__(
        self, family: Family, running: RunningImages, queue: AdmissionQueue[ImageState], decoder: Decoder
    ) -> None:
        self._family = family
        self._running = running
        self._queue = queue
        self._decoder = decoder

    def keep(self, images: Sequence[ImageState]) -> None:
        """Let running images go on from where they are when they begin again. They wait for the device."""
        for image, checkpoint in self._read(self._leave(images)).items():
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
            self._queue.resume(image)

    def park(self, handles: Collection[Hashable]) -> list[Parked]:
        """Take images out of the engine; as ``Engine.park``."""
        running, waiting, decoding = (
            [image for image in images if image.handle in handles and image.evaluations_made]
            for images in (self._running, self._queue, self._decoder.first_stages)
        )
        fresh = self._leave(running)
        for image in waiting:
            if image.checkpoint is None:
                assert image.origin is not None  # noqa: S101 (it waits for its second stage)
                fresh[image] = {0: image.origin.initial}
        fresh |= {image: {image.step_index % HISTORY: self._decoder.first_stages[image]} for image in decoding}
        made = self._read(fresh)
        for image in running:
            self._running.remove(image)
        for image in waiting:
            self._queue.remove(image)
        for image in decoding:
            self._decoder.drop(image.handle)
        # what was suspended has its checkpoint
        found = ((image, made.get(image, image.checkpoint)) for image in (*running, *waiting, *decoding))
        return [Parked(image.job, image.handle, checkpoint) for image, checkpoint in found if checkpoint is not None]

    def paused(self) -> list[tuple[Hashable, float]]:
        """Return the images that urgent ones have put down; as ``Engine.paused``."""
        now = time.perf_counter()
        images = {image: image.put_down for image in (*self._running, *self._queue)}
        return [(image.handle, now - since) for image, since in images.items() if since]

    def _leave(self, images: Sequence[ImageState]) -> dict[ImageState, Mapping[int, torch.Tensor]]:
        """End the time of running images in the batch; return views of their ring columns."""
        found: dict[ImageState, Mapping[int, torch.Tensor]] = {}
        for image in images:
            assert self._running.batch is not None  # noqa: S101 (it runs)
            image.leave()
            found[image] = self._running.batch.columns(image)
        return found

    def _read(self, columns: Mapping[ImageState, Mapping[int, torch.Tensor]]) -> dict[ImageState, ImageCheckpoint]:
        """Return the checkpoints of images with these ring columns, by one copy off the device."""
        frames = {image: image.all_frames for image in columns}
        host = iter(copy_to_host([*chain(*(each.values() for each in columns.values())), *chain(*frames.values())]))
        copied = {image: {at: next(host) for at in each} for image, each in columns.items()}
        return {
            image: checkpoint_of(self._family, image, copied[image], [next(host) for _ in latents])
            for image, latents in frames.items()
        }


def copy_to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
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
