"""Liveness and readiness of a worker, as its probes report them."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import cast

import pytest

from latentfarm_worker.service.health import Health
from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.supervise.shared_state import Phase, SharedState

pytestmark = pytest.mark.unit


def test_a_worker_is_live_unless_a_step_exceeds_the_stall_timeout() -> None:
    state = SharedState()
    health = Health(state, stall_timeout_s=0.05)
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
    health = Health(state, stall_timeout_s=0)
    state.step()
    state.enter(Phase.IDLE)
    assert [health.live() for _ in range(3)] == ["", "", ""]


def test_a_worker_is_ready_between_loading_and_draining() -> None:
    health = Health(SharedState(), stall_timeout_s=1)
    assert health.ready() == "the model is loading"
    renderer = SimpleNamespace(draining=False)
    health.renderer = cast("RenderLoop", renderer)
    assert health.ready() == ""
    renderer.draining = True
    assert health.ready() == "draining"
