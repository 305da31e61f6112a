"""Inputs are made once for all jobs that wait for them, and made again after a pause where that can help."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
from tests.conftest import until
from tests.support.engines import make
from tests.support.input_images import Inputs, digest, paint

from latentfarm.errors import JobError, UnavailableError
from latentfarm_worker.engine.job_inputs import NO_INPUTS, JobInputs
from latentfarm_worker.input_images.reader import InputReader
from latentfarm_worker.input_images.supply import InputSupply, InputUnavailableError, PendingInputs
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.threads import Threads

pytestmark = pytest.mark.unit

SIZE = {"width": 64, "height": 64}


class Slow(Inputs):
    """Inputs that come only when they may, and that are refused ``refusals`` times."""

    def __init__(self) -> None:
        super().__init__()
        self.may_come = Event()
        self.refusals = 0

    def get(self, key: str, *, max_bytes: int) -> bytes:
        assert self.may_come.wait(30)
        body = super().get(key, max_bytes=max_bytes)
        if self.refusals:
            self.refusals -= 1
            raise UnavailableError("503 Slow Down")
        return body


@pytest.fixture
def inputs() -> Slow:
    return Slow()


@pytest.fixture
def supply(sd1: Any, inputs: Slow) -> Iterator[InputSupply]:
    bucket: Any = inputs
    found = InputSupply(InputReader(bucket, sd1), Threads(Metrics("mini")), missing_s=0.0, unavailable_s=5.0)
    yield found
    inputs.may_come.set()
    found.close()


def await_result(pending: PendingInputs) -> JobInputs:
    """Return the result as the prefetcher takes it: whenever it is due."""
    found: list[JobInputs] = []

    def take() -> bool:
        result = pending.result() if pending.due else None
        found.extend([result] if result is not None else [])
        return bool(found)

    until(take, timeout_s=20)
    return found[0]


def test_a_job_of_text_waits_for_nothing(supply: InputSupply) -> None:
    pending = supply.begin(make(0), lambda: None)
    assert pending.done
    assert pending.result() is NO_INPUTS


def test_jobs_that_share_an_input_wait_for_one_read_and_are_all_notified(supply: InputSupply, inputs: Slow) -> None:
    image, arrived = inputs.add(paint(1)), [Event(), Event(), Event()]
    waiting = [supply.begin(make(at, image=image, **SIZE), arrived[at].set) for at in range(3)]
    assert [pending.result() for pending in waiting] == [None] * 3
    assert not any(pending.due for pending in waiting)
    inputs.may_come.set()
    assert all(event.wait(20) for event in arrived)
    made = [await_result(pending) for pending in waiting]
    assert len(inputs.gets) == 1
    assert made[0].posterior is not None
    assert all(each.posterior is made[0].posterior for each in made)
    later = supply.begin(make(9, image=image, **SIZE), lambda: None)
    assert later.done, "it is kept"


def test_an_input_that_the_store_refuses_is_requested_again(supply: InputSupply, inputs: Slow) -> None:
    inputs.may_come.set()
    inputs.refusals = 2
    pending = supply.begin(make(0, image=inputs.add(paint(1)), **SIZE), lambda: None)
    assert await_result(pending).image is not None
    assert len(inputs.gets) == 3


def test_an_input_that_the_store_never_gives_may_be_tried_again_by_the_farm(sd1: Any, inputs: Slow) -> None:
    inputs.may_come.set()
    inputs.refusals = 1000
    bucket: Any = inputs
    impatient = InputSupply(InputReader(bucket, sd1), Threads(Metrics("mini")), unavailable_s=0.0)
    pending = impatient.begin(make(0, image=inputs.add(paint(1)), **SIZE), lambda: None)
    with pytest.raises(InputUnavailableError, match="503 Slow Down; retry the job when the store answers") as caught:
        await_result(pending)
    assert caught.value.code == "input_unavailable"
    impatient.close()


def test_what_is_missing_fails_now_and_is_looked_for_again_by_later_jobs(supply: InputSupply, inputs: Slow) -> None:
    inputs.may_come.set()
    body = b"not there yet"
    for _ in range(2):
        with pytest.raises(JobError) as caught:
            await_result(supply.begin(make(0, image=digest(body), **SIZE), lambda: None))
        assert caught.value.code == "input_missing"
    assert len(inputs.gets) == 2
