"""The prompts behind a job are those of the next rows of its part, and are encoded while text encoders are moved."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from tests.support.engines import BreakingFamily, make, run

from latentfarm.errors import InputError, JobError
from latentfarm.job import Job
from latentfarm.ledger import Lease
from latentfarm.limits import PART_JOBS
from latentfarm.storage.manifest import ManifestReader
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.engine.preparation import tokenize
from latentfarm_worker.service.prompts_ahead import prompts_after
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors

pytestmark = pytest.mark.unit


class Rows:
    """A manifest whose rows have their index in the prompt, three rows for each number."""

    def __init__(self, count: int) -> None:
        self._count = count

    def job(self, batch: str, index: int, created_ms: int) -> Job:
        del batch, created_ms
        if index >= self._count:
            raise InputError(f"the manifest has no job {index}")
        return make(index, prompt=f"image {index // 3}")


def after(index: int, count: int) -> list[int]:
    """Return the numbers in the prompts behind a job."""
    family = cast("Any", BreakingFamily())
    lease = cast("Lease", type("Lease", (), {"batch": "b", "index": index, "created_ms": 0}))

    def prompts_of(job: Job) -> tuple[Prompt, ...]:
        if job.index == index + 2:
            raise JobError("prompt_too_complex", "it has too many chunks")
        return tokenize(family, job)

    found = prompts_after(lease, cast("ManifestReader", Rows(count)), prompts_of)
    assert len({*found}) == len(found)
    return [prompt.tokens.chunks[0][0] - 1 for prompt in found if not prompt.negative]


def test_different_prompts_of_the_next_64_rows_follow_and_what_cannot_be_encoded_is_left_out() -> None:
    assert after(0, 1000) == [*range(22)]
    assert after(5, 10) == [2, 3]
    assert after(9, 10) == []


def test_no_other_part_is_read() -> None:
    last = PART_JOBS - 1
    assert after(last, 2 * PART_JOBS) == []
    assert after(last - 1, 2 * PART_JOBS) == [last // 3]


class Moved(BreakingFamily):
    """A family whose text encoders are moved; it notes the prompts of each call."""

    def __init__(self, **bad: Any) -> None:
        super().__init__(**bad)
        self.encoder_placement.placement = "offload"
        self.calls: list[list[int]] = []

    def encode(self, prompts: Any) -> list[Tensors]:
        self.calls.append([prompt.tokens.chunks[0][0] - 1 for prompt in prompts if not prompt.negative])
        return super().encode(prompts)


def rendering(family: Any, *, interactive: bool = False) -> Engine:
    """Return an engine with the first of six rows, whose prompts all differ."""
    engine = Engine(family, slots=1)
    image = engine.prepare(make(0), interactive=interactive)
    image.following = tuple(prompt for index in range(1, 6) for prompt in tokenize(family, make(index)))
    engine.admit(image)
    return engine


def test_what_follows_is_encoded_with_the_first_image_and_not_again() -> None:
    family = cast("Any", Moved())
    engine = rendering(family)
    run(engine)
    assert [number for call in family.calls for number in call] == [*range(6)]
    for index in range(1, 6):
        engine.admit(make(index))
    assert len(run(engine)) == 5
    assert sum(map(len, family.calls)) == 6


def test_an_image_for_which_a_client_waits_does_not_wait_for_the_prompts_of_others() -> None:
    family = cast("Any", Moved())
    run(rendering(family, interactive=True))
    assert family.calls == [[0]]


def test_a_prompt_that_breaks_the_encoder_harms_no_image_before_it() -> None:
    family = cast("Any", Moved(encode=[1]))
    engine = rendering(family)
    done: list[Any] = []
    with torch.inference_mode():
        while engine.busy:
            try:
                done += engine.step()
            except RuntimeError as error:
                done += engine.isolate(error)
    [image] = done
    assert isinstance(image, Rendered)
    assert family.calls[-1] == [0]
