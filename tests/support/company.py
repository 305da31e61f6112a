"""Render a job among random others that join at random steps: its bytes must be those that it has alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.support.engines import make, pixels

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import Family

SIZES = [(None, None), (None, None), (96, 64), (64, 128), (128, 128)]
SCHEDULERS = ["euler", "euler_a", "dpm++2m", "heun", "ddim", None]
#: those of flow-matching models
FLOW_SCHEDULERS = ["flow_euler", "flow_euler-karras", "dpm++2m-sde", "flow_heun", "unipc", None]


def render_in_company(
    family: Family, job: Job, *, seed: int, company: int, schedulers: Sequence[str | None] = SCHEDULERS
) -> bytes:
    """Return the pixels of a job, of index 0, among ``company`` others with random fields."""
    dice = random.Random(seed)  # noqa: S311 (dice, not keys)
    coming = [_stranger(dice, index, schedulers) for index in range(1, company + 1)]
    coming.insert(dice.randint(0, company), job)
    engine, done = Engine(family, slots=3), {}
    while coming or engine.busy:
        for _ in range(dice.randint(0, 3)):
            if coming:
                engine.admit(coming.pop(0))
        for result in engine.step():
            done[result.job.index] = result
        engine.check_integrity()
    assert len(done) == company + 1
    return pixels(done[0])


def _stranger(dice: random.Random, index: int, schedulers: Sequence[str | None]) -> Job:
    width, height = dice.choice(SIZES)
    return make(
        index,
        width=width,
        height=height,
        num_inference_steps=dice.randint(1, 6),
        guidance_scale=dice.choice([1.0, 3.0, 7.5]),
        scheduler=dice.choice(schedulers),
    )
