"""Liveness and readiness of a worker, as its probes report them."""

from __future__ import annotations

import time
from threading import Event
from types import SimpleNamespace
from typing import cast

import pytest
from tests.conftest import until

from latentfarm_worker.service.health import Health
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.service.threads import Threads
from latentfarm_worker.supervise.shared_state import Phase, SharedState

pytestmark = pytest.mark.unit


def make_threads() -> Threads:
    return Threads(Metrics("mini"))


def test_a_worker_is_live_unless_a_step_exceeds_the_stall_timeout() -> None:
    state = SharedState()
    health = Health(state, make_threads(), stall_timeout_s=0.05)
    assert health.live() == ""
    state.step()
    assert health.live() == ""
    deadline = time.monotonic() + 10
    while not (problem := health.live()):
        assert time.monotonic() < deadline
    assert problem.startswith("the engine has made no step for")
    state.step()
    assert health.live() == ""


def test_an_idle_worker_is_live() -> None:
    state = SharedState()
    health = Health(state, make_threads(), stall_timeout_s=0)
    state.step()
    state.enter(Phase.IDLE)
    assert [health.live() for _ in range(3)] == ["", "", ""]


def test_a_worker_is_ready_between_loading_and_draining() -> None:
    health = Health(SharedState(), make_threads(), stall_timeout_s=1)
    assert health.ready() == "the model is loading"
    renderer = SimpleNamespace(draining=False)
    health.renderer = cast("RenderLoop", renderer)
    assert health.ready() == ""
    renderer.draining = True
    assert health.ready() == "draining"


def test_a_worker_with_a_thread_that_fails_is_not_ready_until_the_thread_works_again() -> None:
    threads, outage, tried = make_threads(), Event(), Event()
    outage.set()

    def step() -> None:
        if outage.is_set():
            raise KeyError("lease")
        tried.set()

    health = Health(SharedState(), threads, stall_timeout_s=1)
    health.renderer = cast("RenderLoop", SimpleNamespace(draining=False))
    loop = threads.loop("leases", step, interval_s=0.01)
    until(lambda: health.ready() == "the leases thread fails: KeyError: 'lease'")
    outage.clear()
    assert tried.wait(10)
    until(lambda: health.ready() == "")
    loop.stop(None)
    assert health.ready() == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_with_a_thread_that_has_ended_is_not_ready() -> None:
    threads = make_threads()

    def end() -> None:
        raise SystemExit

    threads.loop("leases", end, interval_s=0)
    until(lambda: threads.problem() == "the leases thread has ended")
