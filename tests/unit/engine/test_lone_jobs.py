"""Lone jobs and others share an engine: neither keeps the other waiting for ever. The cost is counted in rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from tests.support.engines import BreakingFamily, make

from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import Family

pytestmark = pytest.mark.unit

SLOTS, JOBS, STEPS = 16, 320, (20, 30, 50)


@dataclass
class Outcome:
    """The rows that the model has computed, in all and by when each job was done, and the steps of lone jobs."""

    cost: int = 0
    done: dict[int, int] = field(default_factory=dict)
    stays: list[int] = field(default_factory=list)


def render(lone: set[int]) -> Outcome:
    """Render all jobs, as the render loop admits them: as many as fit, and one lone job at a time."""
    family, outcome = BreakingFamily(), Outcome()
    predict = family.predict

    def count(latents: torch.Tensor, *more: Any) -> torch.Tensor:
        outcome.cost += len(latents)
        return predict(latents, *more)

    family.predict = count  # type: ignore[assignment, method-assign]
    engine = Engine(cast("Family", family), slots=SLOTS, micro_batch=4)
    waiting, others = sorted(lone, reverse=True), [n for n in reversed(range(JOBS)) if n not in lone]
    here, step, began = -1, 0, 0

    def admit(index: int, cohort: object) -> None:
        job = make(index, num_inference_steps=STEPS[index * 7 % 11 % 3], scheduler="euler")
        engine.admit(engine.prepare(job, index, cohort=cohort))

    while waiting or others or engine.busy:
        if waiting and here < 0 and engine.free:
            here, began = waiting.pop(), step
            admit(here, here)
        while others and engine.free:
            admit(others.pop(), None)
        step += 1
        for each in engine.step():
            outcome.done[each.job.index] = outcome.cost
            if each.handle == here:
                outcome.stays.append(step - began)
                here = -1
    return outcome


def test_if_a_tenth_of_the_jobs_run_alone_the_others_keep_three_quarters_of_their_throughput() -> None:
    lone = {*range(0, JOBS, 10)}
    usual, mixed = render(set()), render(lone)
    assert len(mixed.done) == JOBS
    last = max(cost for index, cost in mixed.done.items() if index not in lone)
    share = (JOBS - len(lone)) / last / (JOBS / usual.cost)
    assert share > 0.75, share
    # lone jobs were done meanwhile; each waited at most for the full batch that may overtake it, and its end
    assert sum(mixed.done[index] <= last for index in lone) >= 5
    assert max(mixed.stays) <= 5 * max(STEPS), max(mixed.stays)
