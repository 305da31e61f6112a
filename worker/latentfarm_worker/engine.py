"""The engine: continuous batching at the denoising step. It knows no Redis, no S3 and no Celery.

A job joins the batch at any step and leaves it when its own steps are done, whatever its neighbours' step
count, scheduler, guidance or prompt. ``Engine.step`` is one iteration: admit, denoise one step, retire.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.families.base import Family
from latentfarm_worker.plan import plan_for
from latentfarm_worker.rows import Image, Rows
from latentfarm_worker.text import TextCache


@dataclass(frozen=True)
class Rendered:
    """A finished picture.

    ``pixels``: uint8 (height, width, 3) on the CPU. ``scheduler``: diffusers' class name. ``timings``:
    seconds of ``encode``, ``denoise`` (on the wall, from admission to the last step) and ``decode``.
    """

    job: Job
    pixels: torch.Tensor
    width: int
    height: int
    scheduler: str
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
    """

    def __init__(self, family: Family, *, slots: int, fixed_rows: bool = True, on_step: Observer | None = None) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; write 1 or more")
        self.family = family
        self.slots = slots
        self.fixed_rows = fixed_rows
        self.on_step = on_step
        self._texts = TextCache(family.encode)
        self._waiting: deque[Image] = deque()
        self._running: list[Image] = []
        self._rows: Rows | None = None

    @property
    def free(self) -> int:
        """How many more guided jobs of the native size there is room for, those waiting counted in."""
        taken = sum(image.width_in_rows for image in (*self._running, *self._waiting))
        return max(0, (2 * self.slots - taken) // 2)

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._waiting or self._running)

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
        for image in self._running[:]:
            self._leave(image)
        return [image.job for image in images]

    @torch.inference_mode()
    def step(self) -> list[Rendered | Failed]:
        """Admit what waits, denoise everything by one step, retire what is finished."""
        self._admit_waiting()
        self._denoise()
        return [self._retire(image) for image in self._running[:] if image.done]

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
            self._start(self._waiting.popleft(), self._rows)

    def _row_count(self, shape: tuple[int, int]) -> int:
        """Return the rows of a batch of latents (h, w): fewer above the native area, at least 2."""
        factor = self.family.vae_scale_factor
        native = (self.family.native_height // factor) * (self.family.native_width // factor)
        return max(2, min(2 * self.slots, 2 * self.slots * native // (shape[0] * shape[1])))

    def _start(self, image: Image, rows: Rows) -> None:
        """Encode the texts, draw the initial latents and take rows."""
        job, began = image.job, time.perf_counter()
        prompts = [job.negative_prompt, job.prompt] if job.guided else [job.prompt]
        texts = [self._texts.get(prompt) for prompt in prompts]
        image.prompt_truncated = texts[-1].truncated
        image.started = time.perf_counter()
        image.timings["encode"] = image.started - began
        image.generator.manual_seed(job.seed)
        noise = torch.randn((1, self.family.latent_channels, *rows.shape), generator=image.generator)
        image.rows = rows.take([text.states for text in texts], noise[0] * image.plan.init_noise_sigma)
        self._running.append(image)

    def _denoise(self) -> None:
        """Make one call of the model for every running image and update its latents."""
        if self._rows is None or not self._running:
            return
        self._rows.denoise(self._running, only_used=not self.fixed_rows)
        for image in self._running:
            image.call += 1
            if self.on_step is not None:
                self.on_step(image.job, image.call, image.plan.calls, self._rows.latents(image))

    def _retire(self, image: Image) -> Rendered | Failed:
        """Decode a finished image and free its rows."""
        assert self._rows is not None  # noqa: S101 (something runs)
        latents = self._rows.latents(image)[None].clone()
        self._leave(image)
        try:
            return self._decode(image, latents)
        except JobError as error:
            return Failed(image.job, error)

    def _decode(self, image: Image, latents: torch.Tensor) -> Rendered:
        if not torch.isfinite(latents).all():
            raise JobError("nan", "the model's output was not finite; try another seed, less guidance or dtype float32")
        began = time.perf_counter()
        pixels = self.family.decode(latents).cpu()
        image.timings |= {"denoise": began - image.started, "decode": time.perf_counter() - began}
        return Rendered(
            job=image.job,
            pixels=pixels,
            width=pixels.shape[1],
            height=pixels.shape[0],
            scheduler=image.plan.scheduler,
            plan_digest=image.plan.digest,
            prompt_truncated=image.prompt_truncated,
            timings=image.timings,
        )

    def _leave(self, image: Image) -> None:
        assert self._rows is not None  # noqa: S101 (something runs)
        self._running.remove(image)
        self._rows.give_back(image.rows)
