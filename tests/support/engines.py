"""An engine in the test's process: make jobs, run the engine to its end, and a family whose methods fail."""

from __future__ import annotations

from typing import Any

import torch

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.models import Family


def make(index: int, **fields: Any) -> Job:
    """Return a job of three steps, with ``fields`` replaced."""
    defaults = {"prompt": f"image {index}", "seed": index, "num_inference_steps": 3}
    return Job(batch="b", index=index, **{**defaults, **fields})


def run(engine: Engine) -> dict[int, Rendered | Failed]:
    """Step until the engine is empty; return the outcomes by job index."""
    done = {}
    while engine.busy:
        for result in engine.step():
            done[result.job.index] = result
        engine.check_integrity()
    return done


def pixels(result: Rendered | Failed) -> bytes:
    """Return the pixels of a rendered image."""
    assert isinstance(result, Rendered), result
    return result.pixels.numpy().tobytes()


class Faulty:
    """A family with some methods replaced."""

    def __init__(self, family: Any, *, vae_dtype: torch.dtype = torch.float32, **methods: Any) -> None:
        self.family = family
        self.vae_dtype = vae_dtype
        self.__dict__ |= methods

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)


JOBS = [
    make(0, scheduler="euler", num_inference_steps=5),
    make(0, scheduler="euler_a", guidance_scale=1.0, num_inference_steps=4),
    make(0, scheduler="dpm++2m", width=96, height=64),
]


def render_alone(family: Family, job: Job) -> bytes:
    """Return the pixels of a job rendered alone, with three slots."""
    engine = Engine(family, slots=3)
    engine.admit(job)
    return pixels(run(engine)[0])
