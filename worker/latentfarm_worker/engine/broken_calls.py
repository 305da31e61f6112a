"""Calls of the device that break: which images are suspects, who starts again, who goes on, and whose fault it was."""

from __future__ import annotations

import logging
from collections.abc import Collection

import torch

from latentfarm.errors import JobError
from latentfarm_worker import device_errors
from latentfarm_worker.engine.admission import AdmissionQueue
from latentfarm_worker.engine.decoder import Decoder
from latentfarm_worker.engine.device_call import DeviceCall, find_cause, split_in_halves
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.outcomes import Failed, engine_error, out_of_memory
from latentfarm_worker.engine.parking import Parking
from latentfarm_worker.engine.running_images import RunningImages

log = logging.getLogger(__name__)


class BrokenCalls:
    """Lets an engine go on after a broken call.

    Args:
        call: the last call.
        running, queue, decoder: the images of the engine.
        parking: suspends images.
    """

    def __init__(
        self,
        call: DeviceCall,
        running: RunningImages,
        queue: AdmissionQueue[ImageState],
        decoder: Decoder,
        parking: Parking,
    ) -> None:
        self._call = call
        self._running = running
        self._queue = queue
        self._decoder = decoder
        self._parking = parking

    def isolate(self, error: Exception) -> list[Failed]:
        """Separate the suspects; as ``Engine.isolate``."""
        suspects = self._suspects()
        decoding = [image for image in self._decoder.images if image in suspects]
        if decoding and self._running.is_whole:
            return self._decoder.isolate(decoding, error)
        self._restart(suspects if self._running.is_whole else [*self._running])
        self._call.images = ()
        cause = find_cause(suspects)
        return [] if cause is None else [self._fail(cause, engine_error(error), retry=not isinstance(error, JobError))]

    def reduce_batch(self, message: str) -> list[Failed]:
        """Go on with half the rows after memory ran out. If they are the fewest already, the suspects are separated.

        Images that were not in the call are suspended if a call of the model keeps its rows. All others start again: so
        the bytes of an image are those of one micro-batch.
        """
        suspects = self._suspects()
        shape = suspects[0].shape
        rows = self._queue.max_rows(shape)
        if rows > 2:
            for image in suspects:
                image.slots_before = image.slots_before or self._queue.max_slots(shape)
            slots = self._queue.reduce(shape, rows)
            log.warning("%s: %s slots from now on for latents of %s", message, slots, shape)
        self._clear_batch(suspects)
        self._call.images = ()
        if rows > 2:
            return []
        if len(suspects) > 1:
            split_in_halves(suspects)
            return []
        # the memory was short because of this image, so others need not have fewer slots
        self._queue.restore(shape, suspects[0].slots_before)
        return [self._fail(suspects[0], out_of_memory(message), retry=False)]

    def _suspects(self) -> list[ImageState]:
        """Return the images in the broken call. If no call broke, any image may be the cause."""
        running, waiting, decoding = self._running, [*self._queue], self._decoder.images
        in_call = [image for image in (*running, *waiting, *decoding) if image in self._call.images]
        return in_call or [*running] or waiting or decoding

    def _clear_batch(self, suspects: Collection[ImageState]) -> None:
        """Queue all running images at the front, in their order, and drop the batch."""
        running, batch = [*self._running], self._running.batch
        if batch is not None and self._running.is_whole:
            rows = self._running.rows_of_call(batch.shape, self._queue.max_rows(batch.shape))
            if rows == batch.micro_batch:
                self._keep([image for image in running if image not in suspects])
        self._restart(running)
        if batch is not None and batch.family.device.type == "cuda":
            torch.cuda.empty_cache()

    def _keep(self, images: list[ImageState]) -> None:
        """Let images go on from where they are; if memory is too short for that, they start again."""
        try:
            self._parking.keep(images)
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise

    def _restart(self, images: Collection[ImageState]) -> None:
        """Queue the running ones of these images again at the front. The others go on."""
        restarting = [image for image in self._running if image in images]
        if len(restarting) == len(self._running):
            # half of an image may be written, or memory must be free before the next batch is made
            self._running.clear()
        for image in restarting:
            if self._running.batch is not None:
                self._running.remove(image)
            image.restart()
        self._queue.prepend(restarting)

    def _fail(self, image: ImageState, error: JobError, *, retry: bool) -> Failed:
        if not self._decoder.drop(image.handle):
            self._queue.remove(image)
        return Failed(image.job, image.handle, error, retry)
