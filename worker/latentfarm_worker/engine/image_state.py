"""One image in flight: its job, plan, prompts and progress."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import ceil

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.engine.sampling_plan import SamplingPlan
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.text_encoder import Prompt


@dataclass(eq=False)
class ImageState:
    """One image that waits, runs or is decoded.

    Attributes:
        handle: the caller's key, never read here; the worker passes its lease.
        cohort: images run together only if theirs are equal [default: None, that of most images].
        prompts: the prompt and, for guidance with a second row, the negative prompt.
        width, height: pixels.
        rows: the image's rows in the batch, one for each prompt; empty while it waits. The first holds its latents.
        step_index: model evaluations that are done.
        slots: the engine's slots for this shape when the image began.
        skipped: later images that began before this one.
        broken: calls of the device that broke with this image alone.
        slots_before: the slots of this shape before they were reduced for this image among others; 0 if they were not.
        error: why the image fails before its last step.
        retry: whether another try may succeed after ``error``.
        queued, started: ``time.perf_counter()`` at the lease and at the first step.
        timings: seconds by stage.
    """

    job: Job
    handle: Hashable
    plan: SamplingPlan
    shape: LatentShape
    width: int
    height: int
    prompts: tuple[Prompt, ...]
    cohort: Hashable = None
    rows: tuple[int, ...] = ()
    step_index: int = 0
    slots: int = 0
    skipped: int = 0
    broken: int = 0
    slots_before: int = 0
    error: JobError | None = None
    retry: bool = False
    generator: torch.Generator = field(default_factory=lambda: torch.Generator("cpu"))
    queued: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def rows_needed(self) -> int:
        """Return the rows that the image takes when it begins."""
        return len(self.prompts)

    @property
    def truncated(self) -> tuple[str, ...]:
        """Return the job's fields whose text was cut off: ``prompt``, ``negative_prompt``."""
        names = ("prompt", "negative_prompt")
        return tuple(name for name, each in zip(names, self.prompts, strict=False) if each.tokens.truncated)

    @property
    def guided(self) -> range:
        """Return the evaluations that apply guidance with a second row."""
        if len(self.prompts) == 1:
            return range(0)
        start, stop = self.job.guidance_interval or (0.0, 1.0)
        # a bound such as 0.07 * 100 = 7.000000000000001 must not be rounded up
        evaluations = self.plan.num_evaluations
        return range(ceil(start * evaluations - 1e-9), ceil(stop * evaluations - 1e-9))

    @property
    def evaluations_left(self) -> int:
        """Return the model evaluations that the image still needs."""
        return 0 if self.error is not None else self.plan.num_evaluations - self.step_index

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or the image has failed."""
        return self.evaluations_left == 0

    def restart(self) -> None:
        """Reset the progress. The generator is seeded again at the first step."""
        self.rows, self.step_index, self.timings = (), 0, {}

    def table(self) -> torch.Tensor:
        """Return the numbers of each evaluation, float32 (evaluations, 4 + COLUMNS).

        The columns are timestep, input scale, guidance scale, whether guidance applies, and the ring coefficients.
        """
        plan, scale, guided = self.plan, self.job.guidance_scale, self.guided
        lines = zip(plan.timesteps, plan.input_scales, plan.ring_coefficients, strict=True)
        return torch.tensor(
            [
                [timestep, input_scale, scale, float(index in guided), *ring]
                for index, (timestep, input_scale, ring) in enumerate(lines)
            ]
        )
