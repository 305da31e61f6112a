"""Whether a worker lives and is ready, as its probes are told."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import cast

import pytest

from latentfarm_worker.service.health import Health
from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.supervise.shared_state import Phase, SharedState

pytestmark = pytest.mark.unit


def test_a_worker_lives_unless_a_step_goes_on_for_too_long() -> None:
    pulse = SharedState()
    health = Health(pulse, hang_s=0.05)
    assert health.live() == ""
    pulse.step()
    assert health.live() == ""
    deadline = time.monotonic() + 10
    while not (problem := health.live()):
        assert time.monotonic() < deadline
    assert problem.startswith("the engine has made no step for")
    pulse.step()
    assert health.live() == ""


def test_an_idle_worker_lives_however_long_it_idles() -> None:
    pulse = SharedState()
    health = Health(pulse, hang_s=0)
    pulse.step()
    pulse.enter(Phase.IDLE)
    assert [health.live() for _ in range(3)] == ["", "", ""]


def test_a_worker_is_ready_between_loading_and_draining() -> None:
    health = Health(SharedState(), hang_s=1)
    assert health.ready() == "the model is being loaded"
    renderer = SimpleNamespace(draining=False)
    health.renderer = cast("RenderLoop", renderer)
    assert health.ready() == ""
    renderer.draining = True
    assert health.ready() == "draining"
