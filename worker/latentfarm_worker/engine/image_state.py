"""One image in flight: its job, plan, prompts and progress."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import ceil

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.engine.sampling_plan import SamplingPlan
from latentfarm_worker.models.base import LatentShape
from latentfarm_worker.models.text_encoder import Prompt


@dataclass(eq=False)
class ImageState:
    """One image in flight, or waiting with no rows yet.

    ``prompts``: what it shows and, with guidance, what it should not. ``rows``: one row of the batch for each of them;
    its latents and their past are kept in the first. ``call``: how many calls of the model are behind it. ``slots``:
    those of its shape when it began. ``passed``: how many later ones began before it. ``error``: why it has failed
    before its end. ``queued``, ``started``: by ``time.perf_counter()``, when it was leased and when it began.
    """

    job: Job
    plan: SamplingPlan
    shape: LatentShape
    width: int
    height: int
    prompts: tuple[Prompt, ...]
    rows: tuple[int, ...] = ()
    call: int = 0
    slots: int = 0
    passed: int = 0
    error: JobError | None = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator("cpu"))
    queued: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def truncated(self) -> tuple[str, ...]:
        """Which of its texts lost their end: ``prompt``, ``negative_prompt``."""
        names = ("prompt", "negative_prompt")
        return tuple(name for name, each in zip(names, self.prompts, strict=False) if each.tokens.truncated)

    @property
    def guided(self) -> range:
        """The calls of the model in which it has guidance."""
        if len(self.prompts) == 1:
            return range(0)
        start, stop = self.job.guidance_interval or (0.0, 1.0)
        # what was written with two decimals must not be rounded up for the sake of its last bit
        return range(ceil(start * self.plan.calls - 1e-9), ceil(stop * self.plan.calls - 1e-9))

    @property
    def calls_left(self) -> int:
        """How many calls of the model it still needs."""
        return 0 if self.error is not None else self.plan.calls - self.call

    @property
    def over(self) -> bool:
        """Whether all its steps are made, or no more will be."""
        return self.calls_left == 0

    def restart(self) -> None:
        """Forget what was done; the generator is seeded when it starts."""
        self.rows, self.call, self.timings = (), 0, {}

    def table(self) -> torch.Tensor:
        """Return a line of numbers for each call of the model, float32 (calls, 4 + COLUMNS)."""
        plan, scale, guided = self.plan, self.job.guidance_scale, self.guided
        lines = zip(plan.timesteps, plan.input_scales, plan.ring_coefficients, strict=True)
        return torch.tensor(
            [
                [timestep, input_scale, scale, float(call in guided), *ring]
                for call, (timestep, input_scale, ring) in enumerate(lines)
            ]
        )
