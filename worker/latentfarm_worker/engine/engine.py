"""The engine: continuous batching at the denoising step. It knows no Redis, no S3 and no Celery.

A job joins the batch at any step and leaves it when its own steps are done, whatever its neighbours' step
count, scheduler, guidance or prompt. ``Engine.step`` is one iteration: admit, denoise one step, retire.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import torch

from latentfarm.errors import JobError
from latentfarm.job import DEFAULT_STEPS, Job
from latentfarm_worker import device_errors
from latentfarm_worker.calibration.dummy_inputs import dummy_inputs
from latentfarm_worker.engine.batch_sizes import BatchSizes, any_batch_size, exact_batch_sizes
from latentfarm_worker.engine.decoder import Decoder, Failed, Rendered, out_of_memory
from latentfarm_worker.engine.device_batch import DeviceBatch
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.sampling_plan import plan_for
from latentfarm_worker.engine.text_cache import TextCache
from latentfarm_worker.models.base import Family, LatentShape, native_shape
from latentfarm_worker.models.text_encoder import Prompt, Tensors

__all__ = ["Engine", "Failed", "Observer", "Rendered"]

log = logging.getLogger(__name__)

#: steps that the host may be ahead of the device: enough to keep it busy, few enough to hear of a cancellation
_AHEAD = 2

#: called after each step of each image: the job, its calls so far, its calls in all, its latents (C, h, w)
Observer = Callable[[Job, int, int, torch.Tensor], None]


class Engine:
    """Renders jobs on one device, many at once.

    ``slots`` is the number of guided jobs of the native size that run together. ``row_counts`` says which numbers of
    rows the model may be called with: by default those at which a job's bytes do not depend on its neighbours.

    Images of one shape run together. Those of another wait in line; so that they do not starve, and the batch does not
    run half empty for each of them, they are passed by at most as many images as there are rows.

    Where memory runs out, a shape gets half its slots for the rest of the engine's life, and what ran begins again
    with them: so its bytes are still those of one number of rows, from the first step to the last.

    ``on_call`` is called before each call of the encoder, the model and the decoder: the engine moves.
    """

    def __init__(
        self,
        family: Family,
        *,
        slots: int,
        row_counts: BatchSizes = exact_batch_sizes,
        on_step: Observer | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; write 1 or more")
        self.family = family
        self.slots = slots
        self._row_counts = row_counts
        #: by the shape and the rows of its full batch
        self._known_counts: dict[tuple[LatentShape, int], tuple[int, ...]] = {}
        self.on_step = on_step
        self.on_call: Callable[[], None] = lambda: None
        self._texts = TextCache(family.encode)
        self._decoder = Decoder(family, on_call=self._call)
        self._waiting: deque[ImageState] = deque()
        self._running: list[ImageState] = []
        self._rows: DeviceBatch | None = None
        #: the slots of shapes for which there was not enough memory
        self._limits: dict[LatentShape, int] = {}
        self._steps_begun: deque[torch.cuda.Event] = deque()

    @property
    def exact(self) -> bool:
        """Whether a job's bytes do not depend on its neighbours."""
        return self._row_counts is not any_batch_size

    @property
    def free(self) -> int:
        """How many more guided jobs of the native size there is room for, those waiting counted in."""
        return self.free_within(0)

    def free_within(self, calls: int) -> int:
        """How many there will be room for after so many calls of the model; for any thread."""
        staying = [image for image in tuple(self._running) if image.calls_left > calls]
        taken = sum(len(image.rows) for image in staying)
        taken += sum(len(image.prompts) for image in tuple(self._waiting))
        return max(0, (2 * self._slots_of(native_shape(self.family)) - taken) // 2)

    @property
    def slots_taken(self) -> float:
        """How many slots the running images take, half a one if they have no guidance; for any thread."""
        return sum(len(image.rows) for image in tuple(self._running)) / 2

    @property
    def busy(self) -> bool:
        """Whether anything waits, runs or is decoded."""
        return bool(self._waiting or self._running or self._decoder.images)

    def warm_up(self) -> None:
        """Make a picture that nobody wants, in two steps, and the plan that most jobs use.

        A device's first calls, the first with each number of rows where something is compiled for it, and the first
        probe of a scheduler take seconds that no job should wait for.
        """
        with suppress(JobError):
            # a model may come with a scheduler that has no plan; its jobs name another
            plan_for(self.family.scheduler_config, None, {}, DEFAULT_STEPS)
        self.admit(Job(batch="warm-up", index=0, prompt="", seed=0, num_inference_steps=2, scheduler="euler"))
        while self.busy:
            self.step()
        if self.family.compiled or self.family.device.type == "cuda":
            try:
                self._call_with_each_count(native_shape(self.family))
            except Exception as error:
                # if there is no memory for a full batch, the first one finds out, and begins again with less
                if not device_errors.is_out_of_memory(error):
                    raise

    def _call_with_each_count(self, shape: LatentShape) -> None:
        counts = self._counts_of(shape)
        inputs = dummy_inputs(self.family, shape, counts[-1])
        for count in counts:
            self.on_call()
            self.family.predict(*inputs.first(count))

    def calls_left(self) -> dict[str, int | None]:
        """Return how many calls of the model each job still needs, None for one that waits; for any thread."""
        waiting = dict.fromkeys(image.job.name for image in tuple(self._waiting))
        decoded = dict.fromkeys((image.job.name for image in self._decoder.images), 0)
        return {**waiting, **decoded, **{image.job.name: image.calls_left for image in tuple(self._running)}}

    def prepare(self, job: Job) -> ImageState:
        """Return what a job needs before it may begin: its plan and its tokens. Any thread may do so beforehand.

        Raises:
            JobError: code ``scheduler``: its scheduler or options cannot be used; code ``prompt`` or ``clip_skip``: its
                texts cannot be encoded as it asks.

        """
        family = self.family
        if job.clip_skip > family.max_clip_skip:
            raise JobError(
                "clip_skip",
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
        return ImageState(job, plan, LatentShape(height // factor, width // factor, chunks), width, height, prompts)

    def admit(self, job: Job | ImageState) -> None:
        """Queue a job, prepared or not; it starts with the next ``step`` that has room for it.

        Raises:
            JobError: as ``prepare``. Nothing is queued.

        """
        self._waiting.append(job if isinstance(job, ImageState) else self.prepare(job))

    @torch.inference_mode()
    def cancel(self, name: str) -> bool:
        """Drop the job ``name``, wherever it is; its rows are free before the next step.

        Returns whether it was there.
        """
        for image in self._running:
            if image.job.name == name:
                self._leave(image)
                return True
        for image in self._waiting:
            if image.job.name == name:
                self._waiting.remove(image)
                return True
        return self._decoder.drop(name)

    def clear(self) -> list[Job]:
        """Drop everything that waits, runs or is decoded; return those jobs."""
        images = [*self._running, *self._waiting]
        self._waiting.clear()
        self._running.clear()
        # whatever broke may have left rows half taken
        self._rows = None
        return [*(image.job for image in images), *self._decoder.clear()]

    @torch.inference_mode()
    def step(self) -> list[Rendered | Failed]:
        """Admit what waits, denoise everything by one step, retire what is finished."""
        try:
            self._admit_waiting()
            self._denoise()
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            message = str(error).partition("\n")[0]
        else:
            return self._retire()
        # out here, where no traceback holds the step's tensors any more
        return self._shrink(message)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every row is either free or owned by exactly one running image."""
        owned = [row for image in self._running for row in image.rows]
        everything = sorted([*owned, *(self._rows.free if self._rows else [])])
        if everything != list(range(self._rows.count if self._rows else 0)):
            raise AssertionError(f"rows owned and free: {everything}")

    def _call(self) -> None:
        self.on_call()

    # -- admit -----------------------------------------------------------------------------------------------

    def _admit_waiting(self) -> None:
        """Start the waiting images that fit, in their order; all texts that they need are encoded together."""
        if not self._waiting:
            return
        first = self._waiting[0]
        if self._rows is None or (self._rows.shape != first.shape and not self._running):
            self._rows = DeviceBatch(self.family, first.shape, self._counts_of(first.shape))
        starting = self._next_images(self._rows)
        if not starting:
            return
        self.on_call()
        began = time.perf_counter()
        texts = iter(self._texts.get([prompt for image in starting for prompt in image.prompts]))
        text_s = (time.perf_counter() - began) / len(starting)
        for image in starting:
            image.timings["text"] = text_s
            sizes = self.family.size_tensors(image.width, image.height)
            guidance = self.family.guidance_tensors(image.job.guidance_scale)
            self._start(image, self._rows, [{**next(texts), **sizes, **guidance} for _ in image.prompts])
            self._waiting.remove(image)

    def _next_images(self, rows: DeviceBatch) -> list[ImageState]:
        """Return the waiting images that can begin now: those of the rows' shape that fit, in their order."""
        starting: list[ImageState] = []
        passed: list[ImageState] = []
        free = len(rows.free)
        for image in self._waiting:
            if image.shape != rows.shape and image.passed < rows.count:
                passed.append(image)
                continue
            # one that was passed often enough keeps everybody else waiting, until the batch has run empty for it
            if image.shape != rows.shape or len(image.prompts) > free:
                break
            free -= len(image.prompts)
            starting.append(image)
            for other in passed:
                other.passed += 1
        return starting

    def _slots_of(self, shape: LatentShape) -> int:
        return self._limits.get(shape, self.slots)

    def _row_count(self, shape: LatentShape) -> int:
        """Return the rows of a batch: fewer above the native area, at least 2."""
        slots = self._slots_of(shape)
        return max(2, min(2 * slots, 2 * slots * native_shape(self.family).area // shape.area))

    def _counts_of(self, shape: LatentShape) -> tuple[int, ...]:
        """Return with how many rows the model may be called, the last being the full batch."""
        rows = self._row_count(shape)
        if (shape, rows) not in self._known_counts:
            try:
                self._known_counts[shape, rows] = self._row_counts(self.family, shape, rows, on_call=self._call)
            except Exception as error:
                if not device_errors.is_out_of_memory(error):
                    raise
                # nor will it do for a full batch, as the next call finds out
                return (rows,)
        return self._known_counts[shape, rows]

    def _start(self, image: ImageState, rows: DeviceBatch, told: list[Tensors]) -> None:
        """Draw the initial latents and take rows."""
        image.started = time.perf_counter()
        image.timings["wait"] = image.started - image.queued - image.timings["text"]
        image.slots = self._slots_of(rows.shape)
        image.generator.manual_seed(image.job.seed)
        shape = (1, self.family.latent_channels, rows.shape.height, rows.shape.width)
        noise = torch.randn(shape, generator=image.generator)
        rows.take(image, told, noise[0] * image.plan.init_noise_sigma)
        self._running.append(image)

    # -- denoise, retire -------------------------------------------------------------------------------------

    def _denoise(self) -> None:
        """Make one call of the model for every running image and update its latents."""
        if self._rows is None or not self._running:
            return
        self.on_call()
        self._rows.denoise(self._running)
        for image in self._running:
            image.call += 1
            if self.on_step is not None:
                try:
                    self.on_step(image.job, image.call, image.plan.calls, self._rows.latents(image))
                except JobError as error:
                    image.error = error
            if len(image.rows) > 1 and not image.over:
                if image.call >= image.guided.stop:
                    self._rows.shrink(image)
                elif image.call == image.guided.start:
                    self._rows.wake(image)
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Wait until the device is but a few steps behind."""
        if self.family.device.type != "cuda":
            return
        begun = torch.cuda.Event()  # type: ignore[no-untyped-call]
        begun.record()
        self._steps_begun.append(begun)
        if len(self._steps_begun) > _AHEAD:
            self._steps_begun.popleft().synchronize()

    def _retire(self) -> list[Rendered | Failed]:
        """Free the rows of what is over, and decode it."""
        outcomes: list[Rendered | Failed] = []
        for image in [image for image in self._running if image.over]:
            if image.error is not None:
                outcomes.append(Failed(image.job, image.error))
            elif self._rows is not None:
                image.timings["denoise"] = time.perf_counter() - image.started
                self._decoder.add(image, self._rows.latents(image))
            self._leave(image)
        try:
            return outcomes + self._decoder.advance(hurry=not self._running and not self._waiting)
        except Exception:
            # what has failed counts first; the next step meets the error again
            if not outcomes:
                raise
            return outcomes

    def _leave(self, image: ImageState) -> None:
        assert self._rows is not None  # noqa: S101 (something runs)
        self._running.remove(image)
        self._rows.give_back(image.rows)

    def _shrink(self, message: str) -> list[Rendered | Failed]:
        """Begin what ran again with half the rows; where one slot was too many already, it has failed."""
        images, rows = [*self._running], self._rows
        self._running.clear()
        self._rows = None
        if self.family.device.type == "cuda":
            torch.cuda.empty_cache()
        if rows is None or not images:
            # not even one could begin
            images = [self._waiting.popleft()]
        elif rows.count > 2:
            while self._row_count(rows.shape) >= rows.count:
                self._limits[rows.shape] = self._slots_of(rows.shape) // 2
            log.warning("%s: %s slots from now on for latents of %s", message, self._limits[rows.shape], rows.shape)
            for image in reversed(images):
                image.restart()
                self._waiting.appendleft(image)
            return []
        return [Failed(image.job, out_of_memory(message)) for image in images]
