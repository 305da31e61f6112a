"""Continuous batching at the denoising step. The engine imports no Redis, no S3 and no Celery.

An image joins the batch at any step and leaves it after its own last step, independent of the other images' step count,
scheduler, guidance or prompt. ``Engine.step`` is one iteration: admit, denoise one step, retire.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm.limits import DEFAULT_STEPS
from latentfarm_worker import device_errors
from latentfarm_worker.calibration.dummy_inputs import dummy_inputs
from latentfarm_worker.engine.admission import AdmissionQueue
from latentfarm_worker.engine.batch_sizes import BatchSizes, any_batch_size, exact_batch_sizes
from latentfarm_worker.engine.decoder import Decoder, Failed, Rendered, out_of_memory
from latentfarm_worker.engine.device_batch import DeviceBatch
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.sampling_plan import plan_for
from latentfarm_worker.engine.text_cache import TextCache
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.base import Family, native_shape
from latentfarm_worker.models.text_encoder import Prompt, Tensors

__all__ = ["Engine", "Failed", "Observer", "Rendered"]

log = logging.getLogger(__name__)

#: steps that the host may be ahead of the device: enough to keep it busy, few enough to react to a cancellation
_AHEAD = 2

#: called after each step of each image, with a view of its latents, float32 (C, h, w); a JobError fails the image
Observer = Callable[[ImageState, torch.Tensor], None]


class Engine:
    """Renders jobs on one device, many at once.

    If memory runs out, a shape gets half its slots for the rest of the engine's life, and its running images start
    again. So their bytes are those of one batch size, from the first step to the last.

    Only ``prepare`` and the properties and methods marked so are thread-safe; the rest belongs to one thread.

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
        self._batch_sizes = batch_sizes
        #: by shape and rows of a full batch
        self._known_sizes: dict[tuple[LatentShape, int], tuple[int, ...]] = {}
        self._texts = TextCache(family.encode)
        self._decoder = Decoder(family, on_forward=self._report_forward)
        self._queue: AdmissionQueue[ImageState] = AdmissionQueue(slots=slots, native=native_shape(family))
        self._running: list[ImageState] = []
        self._batch: DeviceBatch | None = None
        self._steps_begun: deque[torch.cuda.Event] = deque()

    # -- state, thread-safe ----------------------------------------------------------------------------------

    @property
    def deterministic(self) -> bool:
        """Whether an image's bytes are independent of the other images in the batch."""
        return self._batch_sizes is not any_batch_size

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
        return bool(self._queue or self._running or self._decoder.images)

    def remaining(self) -> list[tuple[Hashable, int | None]]:
        """Return each image's handle and the model evaluations that it still needs; None for one that waits."""
        waiting = [(image.handle, None) for image in self._queue]
        decoding = [(image.handle, 0) for image in self._decoder.images]
        return [*waiting, *decoding, *((image.handle, image.evaluations_left) for image in tuple(self._running))]

    def prepare(self, job: Job, handle: Hashable = None) -> ImageState:
        """Return a job with its sampling plan and tokens, ready to be admitted. Thread-safe.

        ``handle`` is the key under which the job is cancelled and reported [default: the job's name].

        Raises:
            JobError: code ``scheduler`` for a scheduler or options that cannot be used, ``prompt_too_complex`` for a
                text that cannot be encoded, ``clip_skip_out_of_range`` for more layers than the text encoder has.

        """
        family = self.family
        if job.clip_skip > family.max_clip_skip:
            raise JobError(
                "clip_skip_out_of_range",
                f"clip_skip {job.clip_skip} leaves too little of the text encoder; write 0 to {family.max_clip_skip}",
            )
        plan = plan_for(family.scheduler_config, job.scheduler, job.scheduler_options, job.num_inference_steps)
        factor = family.vae_scale_factor
        width, height = job.width or family.native_width, job.height or family.native_height
        texts = [job.prompt, job.negative_prompt] if job.guided and not family.embeds_guidance else [job.prompt]
        tokens = [family.tokenize(text, job.prompt_syntax) for text in texts]
        chunks = max(len(each.chunks) for each in tokens)
        prompts = tuple(
            Prompt(each.padded(chunks), negative=at > 0, clip_skip=job.clip_skip) for at, each in enumerate(tokens)
        )
        shape = LatentShape(height // factor, width // factor, chunks)
        return ImageState(job, job.name if handle is None else handle, plan, shape, width, height, prompts)

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
                self._call_with_each_size(native_shape(self.family))
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
        handles = [image.handle for image in (*self._running, *self._queue, *self._decoder.images)]
        self._queue.clear()
        self._running.clear()
        self._decoder.clear()
        # a broken step may have left rows half allocated
        self._batch = None
        return handles

    @torch.inference_mode()
    def step(self) -> list[Rendered | Failed]:
        """Admit waiting images, denoise all running ones by one step, and retire the finished ones."""
        try:
            self._admit_waiting()
            self._denoise()
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            message = str(error).partition("\n")[0]
        else:
            return self._retire()
        # outside the handler, whose traceback holds the step's tensors
        return self._reduce_batch_after_oom(message)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every row is either free or owned by exactly one running image."""
        owned = [row for image in self._running for row in image.rows]
        everything = sorted([*owned, *(self._batch.free if self._batch else [])])
        if everything != list(range(self._batch.count if self._batch else 0)):
            raise AssertionError(f"rows owned and free: {everything}")

    # -- admit -----------------------------------------------------------------------------------------------

    def _admit_waiting(self) -> None:
        """Start the waiting images that fit, and encode their prompts together."""
        current = self._batch.shape if self._batch else None
        shape = self._queue.next_shape(current, running=bool(self._running))
        if shape is None:
            return
        if self._batch is None or self._batch.shape != shape:
            self._batch = DeviceBatch(self.family, shape, self._sizes_of(shape))
        batch = self._batch
        starting = self._queue.next_images(shape, rows=batch.count, free=len(batch.free))
        if not starting:
            return
        self.on_forward()
        began = time.perf_counter()
        texts = iter(self._texts.get([prompt for image in starting for prompt in image.prompts]))
        text_s = (time.perf_counter() - began) / len(starting)
        for image in starting:
            image.timings["text"] = text_s
            size = self.family.size_conditioning(image.width, image.height)
            guidance = self.family.guidance_conditioning(image.job.guidance_scale)
            self._place(image, batch, [{**next(texts), **size, **guidance} for _ in image.prompts])
            self._queue.remove(image)

    def _place(self, image: ImageState, batch: DeviceBatch, conditioning: list[Tensors]) -> None:
        """Draw an image's initial latents and allocate its rows."""
        image.started = time.perf_counter()
        image.timings["wait"] = image.started - image.queued - image.timings["text"]
        image.slots = self._queue.max_slots(batch.shape)
        image.generator.manual_seed(image.job.seed)
        shape = (1, self.family.latent_channels, batch.shape.height, batch.shape.width)
        noise = torch.randn(shape, generator=image.generator)
        batch.allocate(image, conditioning, noise[0] * image.plan.init_noise_sigma)
        self._running.append(image)

    def _sizes_of(self, shape: LatentShape) -> tuple[int, ...]:
        """Return the batch sizes that the model may be called with; the last is the full batch."""
        rows = self._queue.max_rows(shape)
        if (shape, rows) not in self._known_sizes:
            try:
                sizes = self._batch_sizes(self.family, shape, rows, on_forward=self._report_forward)
            except Exception as error:
                if not device_errors.is_out_of_memory(error):
                    raise
                # a full batch does not fit either: the next step reduces it
                return (rows,)
            self._known_sizes[shape, rows] = sizes
        return self._known_sizes[shape, rows]

    def _call_with_each_size(self, shape: LatentShape) -> None:
        sizes = self._sizes_of(shape)
        inputs = dummy_inputs(self.family, shape, sizes[-1])
        for size in sizes:
            self.on_forward()
            self.family.predict(*inputs.first(size))

    def _report_forward(self) -> None:
        # on_forward may be replaced after the decoder was built
        self.on_forward()

    # -- denoise, retire -------------------------------------------------------------------------------------

    def _denoise(self) -> None:
        """Evaluate the model once for all running images and update their latents."""
        if self._batch is None or not self._running:
            return
        self.on_forward()
        self._batch.denoise(self._running)
        for image in self._running:
            image.step_index += 1
            if self.on_step is not None:
                try:
                    self.on_step(image, self._batch.latents(image))
                except JobError as error:
                    image.error = error
            if len(image.rows) > 1 and not image.finished:
                if image.step_index >= image.guided.stop:
                    self._batch.drop_guidance_row(image)
                elif image.step_index == image.guided.start:
                    self._batch.enable_guidance(image)
        self._limit_run_ahead()

    def _limit_run_ahead(self) -> None:
        """Wait until the device is at most ``_AHEAD`` steps behind."""
        if self.family.device.type != "cuda":
            return
        begun = torch.cuda.Event()  # type: ignore[no-untyped-call]
        begun.record()
        self._steps_begun.append(begun)
        if len(self._steps_begun) > _AHEAD:
            self._steps_begun.popleft().synchronize()

    def _retire(self) -> list[Rendered | Failed]:
        """Free the rows of finished images and decode them."""
        outcomes: list[Rendered | Failed] = []
        for image in [image for image in self._running if image.finished]:
            if image.error is not None:
                outcomes.append(Failed(image.job, image.handle, image.error))
            elif self._batch is not None:
                image.timings["denoise"] = time.perf_counter() - image.started
                self._decoder.add(image, self._batch.latents(image))
            self._remove(image)
        try:
            return outcomes + self._decoder.advance(flush=not self._running and not self._queue)
        except Exception:
            # report the failed images first; the next step meets the error again
            if not outcomes:
                raise
            return outcomes

    def _remove(self, image: ImageState) -> None:
        assert self._batch is not None  # noqa: S101 (an image runs)
        self._running.remove(image)
        self._batch.release(image.rows)

    def _reduce_batch_after_oom(self, message: str) -> list[Rendered | Failed]:
        """Restart the running images with half the rows. If the batch had the fewest rows already, they fail."""
        images, batch = [*self._running], self._batch
        self._running.clear()
        self._batch = None
        if self.family.device.type == "cuda":
            torch.cuda.empty_cache()
        if batch is None or not images:
            # not even one image could begin
            images = [self._queue.pop()]
        elif batch.count > 2:
            slots = self._queue.reduce(batch.shape, batch.count)
            log.warning("%s: %s slots from now on for latents of %s", message, slots, batch.shape)
            for image in images:
                image.restart()
            self._queue.prepend(images)
            return []
        return [Failed(image.job, image.handle, out_of_memory(message)) for image in images]
