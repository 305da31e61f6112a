"""Images that are put down and go on: the same bytes, whatever their scheduler, company, process and history."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.engines import make, pixels, run

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.engine.image_checkpoint import decode, encode
from latentfarm_worker.models import Family

pytestmark = pytest.mark.unit


def draft(engine: Engine, job: Job, evaluations: int, **options: Any) -> Rendered:
    """Return a draft after so many evaluations."""
    image = engine.prepare(job, **options)
    image.draft_at = evaluations
    engine.admit(image)
    drafted = run(engine)[job.index]
    assert isinstance(drafted, Rendered)
    assert drafted.checkpoint is not None
    assert drafted.checkpoint.evaluations == evaluations
    return drafted


def finish(engine: Engine, job: Job, body: bytes, **options: Any) -> bytes:
    """Return the pixels of a job that goes on from a checkpoint's file."""
    engine.admit(engine.prepare(job, checkpoint=decode(body), finish=True, **options))
    finished = run(engine)[job.index]
    assert isinstance(finished, Rendered)
    assert finished.checkpoint is None
    return pixels(finished)


def put_down_everywhere(family: Family, job: Job, **options: Any) -> None:
    """Check that a job has its bytes however many evaluations it was a draft after."""
    engine = Engine(family, slots=2)
    image = engine.prepare(job, **options)
    engine.admit(image)
    whole = pixels(run(engine)[job.index])
    for evaluations in range(1, image.evaluations):
        drafted = draft(engine, job, evaluations, **options)
        assert drafted.checkpoint is not None
        assert finish(engine, job, encode(drafted.checkpoint), **options) == whole, evaluations


@pytest.mark.parametrize("scheduler", ["euler_a", "dpm++2m", "heun", "pndm", "unipc", "dpm++2m-sde"])
def test_an_image_has_its_bytes_after_a_draft_at_any_step(sd1: Any, scheduler: str) -> None:
    put_down_everywhere(sd1, make(0, scheduler=scheduler, num_inference_steps=5))
