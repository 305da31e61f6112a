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
from dataclasses import dataclass

import torch

from latentfarm.errors import JobError
from latentfarm.job import DEFAULT_STEPS, Job
from latentfarm_worker import faults
from latentfarm_worker.families.base import Family
from latentfarm_worker.plan import plan_for
from latentfarm_worker.rows import Image, Rows
from latentfarm_worker.text import TextCache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rendered:
    """A finished picture.

    ``pixels``: uint8 (height, width, 3) on the CPU. ``scheduler``: diffusers' class name. ``slots``: those of an
    engine that gives the same bytes. ``timings``: seconds of ``encode``, ``denoise`` (on the wall, from admission to
    the last step) and ``decode``.
    """

    job: Job
    pixels: torch.Tensor
    width: int
    height: int
    scheduler: str
    slots: int
    plan_digest: str
    prompt_truncated: bool
    timings: dict[str, float]


@dataclass(frozen=True)
class Failed:
    """A job that failed by its own fault; its neighbours did not notice."""

    job: Job
    error: JobError


#: called after each step of each image: the job, its calls so far, its calls in all, its latents (C, h, w)
Observer = Callable[[Job, int, int, torch.Tensor], None]


class Engine:
    """Renders jobs on one device, many at once.

    ``slots`` is the number of guided jobs of the native size that run together. With ``fixed_rows`` the model
    always sees the same number of rows, so that a job's bytes do not depend on its neighbours; without, only
    those in use.

    Where memory runs out, a shape gets half its slots for the rest of the engine's life, and what ran begins again
    with them: so its bytes are still those of one number of rows, from the first step to the last.

    ``on_call`` is called before each call of the encoder, the model and the decoder: the engine moves.
    """

    def __init__(self, family: Family, *, slots: int, fixed_rows: bool = True, on_step: Observer | None = None) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; write 1 or more")
        self.family = family
        self.slots = slots
        self.fixed_rows = fixed_rows
        self.on_step = on_step
        self.on_call: Callable[[], None] = lambda: None
        self._texts = TextCache(family.encode)
        self._waiting: deque[Image] = deque()
        self._running: list[Image] = []
        self._rows: Rows | None = None
        #: the slots of shapes (h, w) for which there was not enough memory
        self._limits: dict[tuple[int, int], int] = {}

    @property
    def free(self) -> int:
        """How many more guided jobs of the native size there is room for, those waiting counted in."""
        factor = self.family.vae_scale_factor
        native = (self.family.native_height // factor, self.family.native_width // factor)
        taken = sum(image.width_in_rows for image in (*self._running, *self._waiting))
        return max(0, (2 * self._slots_of(native) - taken) // 2)

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._waiting or self._running)

    def warm_up(self) -> None:
        """Make a picture that nobody wants, in two steps, and the plan that most jobs use.

        A device's first calls, and the first probe of a scheduler, take seconds that no job should wait for.
        """
        with suppress(JobError):
            # a model may come with a scheduler that has no plan; its jobs name another
            plan_for(self.family.scheduler_config, None, {}, DEFAULT_STEPS)
        self.admit(Job(batch="warm-up", index=0, prompt="", seed=0, num_inference_steps=2, scheduler="euler"))
        while self.busy:
            self.step()

    def calls_left(self) -> dict[str, int | None]:
        """Return how many calls of the model each job still needs, None for one that waits; for any thread."""
        running = {image.job.name: image.plan.calls - image.call for image in tuple(self._running)}
        return {**dict.fromkeys(image.job.name for image in tuple(self._waiting)), **running}

    def admit(self, job: Job) -> None:
        """Queue a job; it starts with the next ``step`` that has room for it.

        Raises:
            JobError: code ``scheduler``: its scheduler or options cannot be used. Nothing is queued.

        """
        plan = plan_for(self.family.scheduler_config, job.scheduler, job.scheduler_options, job.num_inference_steps)
        factor = self.family.vae_scale_factor
        width, height = job.width or self.family.native_width, job.height or self.family.native_height
        self._waiting.append(Image(job, plan, latent_height=height // factor, latent_width=width // factor))

    def cancel(self, name: str) -> bool:
        """Drop the job ``name``, waiting or running; its rows are free before the next step.

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
        return False

    def clear(self) -> list[Job]:
        """Drop everything that waits or runs; return those jobs."""
        images = [*self._running, *self._waiting]
        self._waiting.clear()
        self._running.clear()
        # whatever broke may have left rows half taken
        self._rows = None
        return [image.job for image in images]

    @torch.inference_mode()
    def step(self) -> list[Rendered | Failed]:
        """Admit what waits, denoise everything by one step, retire what is finished."""
        try:
            # a picture whose decoding broke in the last step comes first
            if not any(image.over for image in self._running):
                self._admit_waiting()
                self._denoise()
            return self._retire_all()
        except Exception as error:
            if not faults.is_out_of_memory(error):
                raise
            message = str(error).partition("\n")[0]
        # out here, where no traceback holds the step's tensors any more
        return self._shrink(message)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every row is either free or owned by exactly one running image."""
        owned = [row for image in self._running for row in image.rows]
        everything = sorted([*owned, *(self._rows.free if self._rows else [])])
        if everything != list(range(self._rows.count if self._rows else 0)):
            raise AssertionError(f"rows owned and free: {everything}")

    def _admit_waiting(self) -> None:
        """Start waiting images in their order, until one has another shape or too few rows are free."""
        while self._waiting:
            image = self._waiting[0]
            shape = (image.latent_height, image.latent_width)
            if self._rows is None or (self._rows.shape != shape and not self._running):
                self._rows = Rows(self.family, shape, self._row_count(shape))
            if self._rows.shape != shape or len(self._rows.free) < image.width_in_rows:
                return
            self._start(image, self._rows)
            self._waiting.popleft()

    def _slots_of(self, shape: tuple[int, int]) -> int:
        return self._limits.get(shape, self.slots)

    def _row_count(self, shape: tuple[int, int]) -> int:
        """Return the rows of a batch of latents (h, w): fewer above the native area, at least 2."""
        factor, slots = self.family.vae_scale_factor, self._slots_of(shape)
        native = (self.family.native_height // factor) * (self.family.native_width // factor)
        return max(2, min(2 * slots, 2 * slots * native // (shape[0] * shape[1])))

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
        cure = "render it smaller, or on a device with more memory"
        return [
            Failed(image.job, JobError("oom", f"not enough memory for this job alone ({message}); {cure}"))
            for image in images
        ]

    def _start(self, image: Image, rows: Rows) -> None:
        """Encode the texts, draw the initial latents and take rows."""
        job, began = image.job, time.perf_counter()
        prompts = [job.negative_prompt, job.prompt] if job.guided else [job.prompt]
        self.on_call()
        texts = [self._texts.get(prompt) for prompt in prompts]
        image.prompt_truncated = texts[-1].truncated
        image.started = time.perf_counter()
        image.timings["encode"] = image.started - began
        image.generator.manual_seed(job.seed)
        noise = torch.randn((1, self.family.latent_channels, *rows.shape), generator=image.generator)
        image.slots = self._slots_of(rows.shape)
        image.rows = rows.take([text.states for text in texts], noise[0] * image.plan.init_noise_sigma)
        self._running.append(image)

    def _denoise(self) -> None:
        """Make one call of the model for every running image and update its latents."""
        if self._rows is None or not self._running:
            return
        self.on_call()
        self._rows.denoise(self._running, only_used=not self.fixed_rows)
        for image in self._running:
            image.call += 1
            if self.on_step is not None:
                try:
                    self.on_step(image.job, image.call, image.plan.calls, self._rows.latents(image))
                except JobError as error:
                    image.error = error

    def _retire_all(self) -> list[Rendered | Failed]:
        """Decode what is over, one by one, and free its rows."""
        outcomes: list[Rendered | Failed] = []
        for image in [image for image in self._running if image.over]:
            try:
                outcome = self._retire(image)
            except Exception:
                if outcomes:
                    # what is finished counts first; the next step meets the error again
                    return outcomes
                raise
            self._leave(image)
            outcomes.append(outcome)
        return outcomes

    def _retire(self, image: Image) -> Rendered | Failed:
        assert self._rows is not None  # noqa: S101 (something runs)
        if image.error is not None:
            return Failed(image.job, image.error)
        try:
            return self._decode(image, self._rows.latents(image)[None].clone())
        except JobError as error:
            return Failed(image.job, error)

    def _decode(self, image: Image, latents: torch.Tensor) -> Rendered:
        if not torch.isfinite(latents).all():
            raise JobError("nan", "the model's output was not finite; try another seed, less guidance or dtype float32")
        began = time.perf_counter()
        pixels = self._pixels(latents).cpu()
        image.timings |= {"denoise": began - image.started, "decode": time.perf_counter() - began}
        return Rendered(
            job=image.job,
            pixels=pixels,
            width=pixels.shape[1],
            height=pixels.shape[0],
            scheduler=image.plan.scheduler,
            slots=image.slots,
            plan_digest=image.plan.digest,
            prompt_truncated=image.prompt_truncated,
            timings=image.timings,
        )

    def _pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents (1, C, h, w); what is no picture is decoded once more, with the VAE in float32."""
        self.on_call()
        try:
            return _picture(self.family.decode(latents))
        except JobError:
            if self.family.vae_dtype == torch.float32:
                raise
        return _picture(self.family.decode(latents, float32=True))

    def _leave(self, image: Image) -> None:
        assert self._rows is not None  # noqa: S101 (something runs)
        self._running.remove(image)
        self._rows.give_back(image.rows)


def _picture(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels (H, W, 3), uint8, unless each is the same: black, as a decoder that overflowed leaves it, or flat.

    A prompt might ask for just that, but no sampled picture is so even to the last bit.

    Raises:
        JobError: code ``flat``.

    """
    if bool((pixels == pixels[0, 0]).all()):
        raise JobError("flat", f"every pixel is {pixels[0, 0].tolist()}; try another seed, or dtype float32")
    return pixels
