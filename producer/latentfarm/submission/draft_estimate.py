"""What the drafts of a submission cost, and what is saved if only a share of them is finished."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from latentfarm.step_counts import draft_evaluations

#: width and height, None for the model's native ones
Size = tuple[int | None, int | None]
#: returns the GPU hours of pixels x steps x U-Net rows, given by size; None without measurements
CountHours = Callable[[Mapping[Size, float]], float | None]


class StepCost(BaseModel):
    """Denoising steps and the GPU hours that they take, None without measurements."""

    model_config = ConfigDict(frozen=True)

    steps: int
    gpu_hours: float | None


class DraftEstimate(BaseModel):
    """The cost of ``jobs`` drafts of which the share ``keep`` is finished and the rest discarded.

    ``made`` are the steps of the drafts, ``finish`` those that are left for the share, and ``saved`` those that are
    never made. Steps that images share are counted for each of them.
    """

    model_config = ConfigDict(frozen=True)

    jobs: int
    keep: float
    made: StepCost
    finish: StepCost
    saved: StepCost


@dataclass
class DraftSums:
    """The steps of drafts, and those that are left to their end."""

    jobs: int = 0
    made: int = 0
    left: int = 0
    #: by size
    made_work: defaultdict[Size, float] = field(default_factory=lambda: defaultdict(float))
    left_work: defaultdict[Size, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, fields: Mapping[str, Any], size: Size, steps: tuple[int, int], rows: float) -> None:
        """Add a row's jobs, if they are to stop as drafts.

        Args:
            fields: those of the row and of its defaults.
            size: of its images.
            steps: that are made for an image, in its first and in its second stage.
            rows: U-Net rows of a step, as workers count them.
        """
        first, second = steps
        stop = draft_evaluations(float(fields.get("draft") or 0), int(fields["num_inference_steps"]), first + second)
        if stop is None:
            return
        jobs, area = int(fields.get("num_images_per_prompt", 1)), float(fields.get("hires_scale") or 1) ** 2
        done = min(stop, first) + max(0, stop - first) * area
        self.jobs += jobs
        self.made += jobs * stop
        self.left += jobs * (first + second - stop)
        self.made_work[size] += jobs * rows * done
        self.left_work[size] += jobs * rows * (first + second * area - done)

    def estimate(self, keep: float, hours_of: CountHours) -> DraftEstimate | None:
        """Return the estimate for a share of the drafts, from 0 to 1; None without drafts."""
        if not self.jobs:
            return None
        finished = round(keep * self.left)
        left_hours = hours_of(self.left_work)

        def part(steps: int, share: float) -> StepCost:
            return StepCost(steps=steps, gpu_hours=None if left_hours is None else share * left_hours)

        return DraftEstimate(
            jobs=self.jobs,
            keep=keep,
            made=StepCost(steps=self.made, gpu_hours=hours_of(self.made_work)),
            finish=part(finished, keep),
            saved=part(self.left - finished, 1 - keep),
        )
