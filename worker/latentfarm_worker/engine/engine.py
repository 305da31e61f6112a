"""Continuous batching at the denoising step. The engine imports no Redis, no S3 and no Celery.

An image joins the batch at any step and leaves it after its own last step, independent of the other images' step count,
scheduler, guidance or prompt. ``Engine.step`` is one iteration: admit, denoise one step, retire.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from contextlib import suppress

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm.limits import DEFAULT_STEPS
from latentfarm_worker import device_errors
from latentfarm_worker.engine.admission import AdmissionQueue, BatchKey
from latentfarm_worker.engine.batch_sizes import BatchSizes, KnownBatchSizes, exact_batch_sizes
from latentfarm_worker.engine.decoder import Decoder
from latentfarm_worker.engine.device_batch import DeviceBatch
from latentfarm_worker.engine.device_call import DeviceCall, RunAhead, find_cause, split_in_halves
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.outcomes import Failed, Rendered, engine_error, first_line, out_of_memory
from latentfarm_worker.engine.preparation import prepare
from latentfarm_worker.engine.sampling_plan import plan_for
from latentfarm_worker.engine.text_cache import TextCache
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.base import Family, native_shape
from latentfarm_worker.models.text_encoder import Tensors

__all__ = ["Engine", "Failed", "Observer", "Rendered"]

log = logging.getLogger(__name__)

#: called after each step of each image, with a view of its latents, float32 (C, h, w); an exception fails the image
Observer = Callable[[ImageState, torch.Tensor], None]


class Engine:
    """Renders jobs on one device, many at once.

    If memory runs out, a shape gets half its slots for good, and its running images start again. So their bytes are
    those of one batch size. It gets them back if the memory turns out to be one job's fault.

    Only ``prepare`` and what is marked so is thread-safe; the rest belongs to one thread.

    Args:
        family: the loaded model.
        slots: guided images of the native size that run together.
        batch_sizes: the batch sizes that the model may be called with
            [default: those at which an image's bytes do not depend on other images].
        on_step: called after each step of each image.

    Attributes:
        on_forward: called before each forward pass of the text encoder, the model and the decoder, as a sign of life.
    """

    def __init__(
        self,
        family: Family,
        *,
        slots: int,
        batch_sizes: BatchSizes = exact_batch_sizes,
        on_step: Observer | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; write 1 or more")
        self.family = family
        self.slots = slots
        self.on_step = on_step
        self.on_forward: Callable[[], None] = lambda: None
        self._call = DeviceCall(lambda: self.on_forward())  # noqa: PLW0108 (on_forward may be replaced later)
        self._sizes = KnownBatchSizes(family, batch_sizes, on_forward=self._call.again)
        self._texts = TextCache(family.encode)
        self._decoder = Decoder(family, self._call)
        self._queue: AdmissionQueue[ImageState] = AdmissionQueue(slots=slots, native=native_shape(family))
        self._running: list[ImageState] = []
        self._batch: DeviceBatch | None = None
        #: of the images that began last
        self._cohort: Hashable = None
        self._run_ahead = RunAhead(family.device)
        #: images that failed before their last step, and are not reported yet
        self._failed: list[Failed] = []

    # -- state, thread-safe ----------------------------------------------------------------------------------

    @property
    def deterministic(self) -> bool:
        """Whether an image's bytes are independent of the other images in the batch."""
        return self._sizes.exact

    @property
    def free(self) -> int:
        """Return how many more guided images of the native size fit now."""
        return self.free_within(0)

    def free_within(self, evaluations: int) -> int:
        """Return how many more guided images of the native size fit after so many model evaluations."""
        staying = [image for image in tuple(self._running) if image.evaluations_left > evaluations]
        return self._queue.free_slots(sum(len(image.rows) for image in staying))

    @property
    def slots_taken(self) -> float:
        """Return the slots of the running images: 1 for one with guidance, 0.5 without."""
        return sum(len(image.rows) for image in tuple(self._running)) / 2

    @property
    def busy(self) -> bool:
        """Whether any image waits, runs or is decoded."""
        return bool(self._queue or self._running or self._decoder.images or self._failed)

    def remaining(self) -> list[tuple[Hashable, int | None]]:
        """Return each image's handle and the model evaluations that it still needs; None for one that waits."""
        waiting = [(image.handle, None) for image in self._queue]
        decoding = [(image.handle, 0) for image in self._decoder.images]
        return [*waiting, *decoding, *((image.handle, image.evaluations_left) for image in tuple(self._running))]

    def at_risk(self) -> list[Hashable]:
        """Return the handles of the images in the call of the device that runs now, or that broke.

        A GPU works behind the host, so an error may be that of an earlier call: then these are all images that began.
        """
        images = self._call.images
        if self.family.device.type == "cuda":
            images = [*dict.fromkeys((*images, *tuple(self._running), *self._decoder.images))]
        return [image.handle for image in images]

    def prepare(self, job: Job, handle: Hashable = None, *, cohort: Hashable = None) -> ImageState:
        """Return a job that is ready to be admitted, as ``preparation.prepare``. Thread-safe.

        ``handle`` is the key under which it is cancelled and reported [default: the job's name].
        """
        return prepare(self.family, job, job.name if handle is None else handle, cohort)

    # -- control ---------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Render one throwaway two-step image and build the default sampling plan.

        The first forward pass of a device, of a compiled batch size, and the first probe of a scheduler take seconds.
        Without this, the first job would wait for them.
        """
        with suppress(JobError):
            # a model's own scheduler may have no plan; its jobs name another
            plan_for(self.family.scheduler_config, None, {}, DEFAULT_STEPS)
        self.admit(Job(batch="warm-up", index=0, prompt="", seed=0, num_inference_steps=2, scheduler="euler"))
        while self.busy:
            self.step()
        if self.family.compiled or self.family.device.type == "cuda":
            try:
                shape = native_shape(self.family)
                self._sizes.call_each(shape, self._queue.max_rows(shape))
            except Exception as error:
                # if a full batch does not fit, the first one reduces the slots
                if not device_errors.is_out_of_memory(error):
                    raise

    def admit(self, job: Job | ImageState) -> None:
        """Queue a job, prepared or not. It starts at the next ``step`` that has room for it.

        Raises:
            JobError: as ``prepare``; then nothing is queued.

        """
        self._queue.append(job if isinstance(job, ImageState) else self.prepare(job))

    @torch.inference_mode()
    def cancel(self, handle: Hashable) -> bool:
        """Drop an image that waits, runs or is decoded; its rows are free before the next step.

        Return whether it was there.
        """
        for image in self._running:
            if image.handle == handle:
                self._remove(image)
                return True
        for image in self._queue:
            if image.handle == handle:
                self._queue.remove(image)
                return True
        return self._decoder.drop(handle)

    def abort_all(self) -> list[Hashable]:
        """Drop every image that waits, runs or is decoded; return their handles."""
        handles = [image.handle for image in (*self._running, *self._queue, *self._decoder.images, *self._failed)]
        self._failed.clear()
        self._queue.clear()
        self._running.clear()
        self._decoder.clear()
        self._call.images = ()
        # a broken step may have left rows half allocated
        self._batch = None
        return handles

    @torch.inference_mode()
    def step(self) -> list[Rendered | Failed]:
        """Admit waiting images, denoise all running ones by one step, and retire the finished ones.

        After an exception, ``isolate`` or ``abort_all`` must follow.
        """
        self._call.images = ()
        try:
            self._admit_waiting()
            self._denoise()
            self._retire()
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            message = first_line(error)
        else:
            outcomes = self._decode()
            self._call.images = ()
            return outcomes
        # outside the handler, whose traceback holds the step's tensors
        return [*self._reduce_batch_after_oom(message)]

    @torch.inference_mode()
    def isolate(self, error: Exception) -> list[Failed]:
        """Go on after a step that raised ``error``; return the job whose fault it was, once it is known.

        Only the images in the broken call are suspects: those that began, the running ones, or one group of the
        decoder. They are split in halves, which run one after the other until the cause is alone. Each other image goes
        on, or starts again and has the same bytes.
        """
        suspects = self._suspects()
        decoding = [image for image in self._decoder.images if image in suspects]
        if decoding and self._is_whole:
            return self._decoder.isolate(decoding, error)
        if any(image in self._running for image in suspects) or not self._is_whole:
            self._restart_running()
        self._call.images = ()
        cause = find_cause(suspects)
        return [] if cause is None else [self._fail(cause, engine_error(error), retry=True)]

    def check_integrity(self) -> None:
        """Raise AssertionError unless every row is either free or owned by exactly one running image."""
        if not self._is_whole:
            raise AssertionError(f"rows owned: {[image.rows for image in self._running]}")

    @property
    def _is_whole(self) -> bool:
        return self._batch.is_whole(self._running) if self._batch else not self._running

    # -- admit -----------------------------------------------------------------------------------------------

    def _admit_waiting(self) -> None:
        """Start the waiting images that fit, and encode their prompts together."""
        first = self._running[0] if self._running else None
        key = self._queue.next_key(BatchKey(first.shape, first.cohort) if first else None)
        if key is None:
            return
        batch = self._batch_of(key.shape)
        starting = self._queue.next_images(key, rows=batch.count, free=len(batch.free))
        if not starting:
            return
        self._cohort = key.cohort
        self._call.begin(starting)
        began = time.perf_counter()
        texts = iter(self._texts.get([prompt for image in starting for prompt in image.prompts]))
        text_s = (time.perf_counter() - began) / len(starting)
        for image in starting:
            image.timings["text"] = text_s
            size = self.family.size_conditioning(image.width, image.height)
            guidance = self.family.guidance_conditioning(image.job.guidance_scale)
            self._call.images = [image]
            try:
                self._place(image, batch, [{**next(texts), **size, **guidance} for _ in image.prompts])
            except Exception:
                # half of its rows are written
                self._restart_running()
                raise
            self._queue.remove(image)
            self._running.append(image)

    def _batch_of(self, shape: LatentShape) -> DeviceBatch:
        """Return the batch of a shape, a new one if there is none. Images of another shape must not run."""
        if self._batch is None or self._batch.shape != shape:
            # first drop the other one: there may be no memory for both
            self._batch = None
            self._call.images = [next(iter(self._queue))]
            self._batch = DeviceBatch(self.family, shape, self._sizes.of(shape, self._queue.max_rows(shape)))
        return self._batch

    def _place(self, image: ImageState, batch: DeviceBatch, conditioning: list[Tensors]) -> None:
        """Draw an image's initial latents and allocate its rows."""
        image.started = time.perf_counter()
        image.timings["wait"] = image.started - image.queued - image.timings["text"]
        image.slots = self._queue.max_slots(batch.shape)
        image.generator.manual_seed(image.job.seed)
        shape = (1, self.family.latent_channels, batch.shape.height, batch.shape.width)
        noise = torch.randn(shape, generator=image.generator)
        batch.allocate(image, conditioning, noise[0] * image.plan.init_noise_sigma)

    # -- denoise, retire -------------------------------------------------------------------------------------

    def _denoise(self) -> None:
        """Evaluate the model once for all running images and update their latents."""
        if self._batch is None or not self._running:
            return
        self._call.begin([*self._running])
        self._batch.denoise(self._running)
        for image in self._running:
            image.step_index += 1
            if self.on_step is not None:
                self._observe(image, self.on_step, self._batch.latents(image))
            if len(image.rows) > 1 and not image.finished:
                if image.step_index >= image.guided.stop:
                    self._batch.drop_guidance_row(image)
                elif image.step_index == image.guided.start:
                    self._batch.enable_guidance(image)
        self._run_ahead.limit()

    def _observe(self, image: ImageState, on_step: Observer, latents: torch.Tensor) -> None:
        try:
            on_step(image, latents)
        except JobError as error:
            image.error = error
        except Exception as error:
            if device_errors.is_out_of_memory(error) or device_errors.is_fatal(error):
                self._call.images = [image]
                raise
            image.error, image.retry = engine_error(error), True

    def _retire(self) -> None:
        """Free the rows of finished images and pass them to the decoder."""
        for image in [image for image in self._running if image.finished]:
            self._call.images = [image]
            if image.error is not None:
                self._failed.append(Failed(image.job, image.handle, image.error, image.retry))
            elif self._batch is not None:
                image.timings["denoise"] = time.perf_counter() - image.started
                self._decoder.add(image, self._batch.latents(image))
            self._remove(image)

    def _decode(self) -> list[Rendered | Failed]:
        """Return the images that have failed, and those that are decoded by now."""
        outcomes: list[Rendered | Failed] = [*self._failed]
        self._failed.clear()
        # nothing of another cohort is called while these are decoded, so an error shows whose it is
        following = self._queue.next_key(None)
        flush = not self._running and (following is None or following.cohort != self._cohort)
        try:
            outcomes += self._decoder.advance(flush=flush)
        except Exception:
            # report the failed images first; the next step meets the error again
            if not outcomes:
                raise
        return outcomes

    def _remove(self, image: ImageState) -> None:
        assert self._batch is not None  # noqa: S101 (an image runs)
        self._running.remove(image)
        self._batch.release(image.rows)

    # -- trouble ---------------------------------------------------------------------------------------------

    def _suspects(self) -> list[ImageState]:
        """Return the images in the broken call. If no call broke, any image may be the cause."""
        running, waiting, decoding = self._running, [*self._queue], self._decoder.images
        in_call = [image for image in (*running, *waiting, *decoding) if image in self._call.images]
        return in_call or [*running] or waiting or decoding

    def _restart_running(self) -> None:
        """Drop the batch, whose rows may be half allocated, and queue its images again at the front."""
        images = [*self._running]
        self._running.clear()
        self._batch = None
        for image in images:
            image.restart()
        self._queue.prepend(images)

    def _fail(self, image: ImageState, error: JobError, *, retry: bool) -> Failed:
        if not self._decoder.drop(image.handle):
            self._queue.remove(image)
        return Failed(image.job, image.handle, error, retry)

    def _reduce_batch_after_oom(self, message: str) -> list[Failed]:
        """Restart the running images with half the rows. If they are the fewest already, the suspects are separated."""
        suspects = self._suspects()
        self._restart_running()
        if self.family.device.type == "cuda":
            torch.cuda.empty_cache()
        shape = suspects[0].shape
        rows = self._queue.max_rows(shape)
        self._call.images = ()
        if rows <= 2 and len(suspects) > 1:
            split_in_halves(suspects)
            return []
        if rows <= 2:
            # the memory was short because of this image, so others need not have fewer slots
            self._queue.restore(shape, suspects[0].slots_before)
            return [self._fail(suspects[0], out_of_memory(message), retry=False)]
        for image in suspects:
            image.slots_before = image.slots_before or self._queue.max_slots(shape)
        slots = self._queue.reduce(shape, rows)
        log.warning("%s: %s slots from now on for latents of %s", message, slots, shape)
        return []
