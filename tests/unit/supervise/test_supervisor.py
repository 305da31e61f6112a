"""What a supervisor concludes from a pulse and an exit code."""

from __future__ import annotations

import os
import signal

import pytest

from latentfarm_worker.supervise import shared_state, supervisor
from latentfarm_worker.supervise.shared_state import Phase, SharedState
from latentfarm_worker.supervise.watchdog import LOOK_S, Watchdog

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("latentfarm_worker.supervise.watchdog.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def looks_until_killed(watch: Watchdog, clock: Clock, *, most: int = 10_000) -> int:
    for look in range(1, most + 1):
        clock.now += LOOK_S
        if watch.stands_still():
            return look
    return most


def test_an_engine_that_makes_no_step_is_killed_after_the_time_it_was_given(clock: Clock) -> None:
    beating = SharedState()
    beating.step()
    watch = Watchdog(beating, hang_s=10)
    assert looks_until_killed(watch, clock) == pytest.approx(10 / LOOK_S, abs=1)


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.IDLE])
def test_an_engine_that_has_nothing_to_do_is_left_alone(clock: Clock, phase: Phase) -> None:
    beating = SharedState()
    beating.enter(phase)
    assert looks_until_killed(Watchdog(beating, hang_s=10), clock) == 10_000


def test_each_step_gives_the_engine_its_time_anew(clock: Clock) -> None:
    beating = SharedState()
    watch = Watchdog(beating, hang_s=10)
    for _ in range(50):
        beating.step()
        assert looks_until_killed(watch, clock, most=40) == 40


def test_a_machine_that_slept_for_an_hour_has_no_engine_that_hangs(clock: Clock) -> None:
    beating = SharedState()
    beating.step()
    watch = Watchdog(beating, hang_s=10)
    clock.now += 3600
    assert not watch.stands_still()


def test_a_child_sees_the_pulse_of_its_parent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = SharedState.shared()
    monkeypatch.setenv(shared_state.SUPERVISED, f"{os.dup(mine.descriptor)}:host-1-abcdef")
    theirs, name = shared_state.from_environment()
    assert name == "host-1-abcdef"
    theirs.step()
    theirs.commit()
    theirs.commit()
    assert (mine.phase, mine.steps, mine.commits) == (Phase.STEPPING, 1, 2)
    assert shared_state.from_environment()[1] is None


@pytest.mark.parametrize(
    ("code", "ours"), [(0, 0), (-signal.SIGTERM, 0), (-signal.SIGINT, 0), (2, 2), (-signal.SIGKILL, 137), (75, 75)]
)
def test_theexit_code_of_a_worker_that_was_asked_to_end_is_told_on(code: int, ours: int) -> None:
    assert supervisor.exit_code(code) == ours
