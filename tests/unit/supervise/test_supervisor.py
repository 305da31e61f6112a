"""What a supervisor concludes from a worker's shared state and its return code."""

from __future__ import annotations

import os
import signal

import pytest

from latentfarm_worker.supervise import shared_state
from latentfarm_worker.supervise.exit_codes import EXIT_RESTART, EXIT_UNAVAILABLE, exit_code_of
from latentfarm_worker.supervise.restart_policy import RestartPolicy
from latentfarm_worker.supervise.shared_state import Phase, SharedState
from latentfarm_worker.supervise.watchdog import POLL_S, Watchdog

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("latentfarm_worker.supervise.watchdog.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def polls_until_stalled(watchdog: Watchdog, clock: Clock, *, most: int = 10_000, every_s: float = POLL_S) -> int:
    for poll in range(1, most + 1):
        clock.now += every_s
        if watchdog.is_stalled():
            return poll
    return most


# a supervisor polls five times a second, a probe every few seconds
@pytest.mark.parametrize("every_s", [POLL_S, 2.0])
def test_an_engine_that_makes_no_step_is_stalled_after_the_timeout(clock: Clock, every_s: float) -> None:
    state = SharedState()
    state.step()
    watchdog = Watchdog(state, 10)
    assert polls_until_stalled(watchdog, clock, every_s=every_s) == pytest.approx(10 / every_s, abs=1)


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.IDLE])
def test_a_loading_or_idle_engine_is_never_stalled(clock: Clock, phase: Phase) -> None:
    state = SharedState()
    state.enter(phase)
    assert polls_until_stalled(Watchdog(state, 10), clock) == 10_000


def test_each_step_resets_the_timeout(clock: Clock) -> None:
    state = SharedState()
    watchdog = Watchdog(state, 10)
    for _ in range(50):
        state.step()
        assert polls_until_stalled(watchdog, clock, most=40) == 40


def test_an_engine_is_not_stalled_after_the_machine_slept_for_an_hour(clock: Clock) -> None:
    state = SharedState()
    state.step()
    watchdog = Watchdog(state, 10)
    clock.now += 3600
    assert not watchdog.is_stalled()


def test_a_child_reads_the_state_of_its_supervisor_once(monkeypatch: pytest.MonkeyPatch) -> None:
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
    ("returncode", "code"),
    [(0, 0), (-signal.SIGTERM, 0), (-signal.SIGINT, 0), (2, 2), (-signal.SIGKILL, 137), (75, 75)],
)
def test_a_worker_stopped_while_it_loads_ends_in_order(returncode: int, code: int) -> None:
    assert exit_code_of(returncode) == code


End = tuple[int, float, bool]


def pauses(policy: RestartPolicy, *ends: End) -> list[float | None]:
    return [policy.pause_s(code, ran_s=ran_s, committed=committed) for code, ran_s, committed in ends]


def test_the_pause_doubles_up_to_its_limit_and_begins_again_after_a_healthy_run() -> None:
    policy = RestartPolicy(first_pause_s=1, longest_pause_s=4, healthy_s=60)
    short, healthy = (EXIT_UNAVAILABLE, 5.0, False), (EXIT_UNAVAILABLE, 61.0, False)
    assert pauses(policy, short, short, short, short, healthy, short) == [1, 2, 4, 4, 1, 2]


def test_an_image_resets_the_count_of_losses_and_the_pause() -> None:
    policy = RestartPolicy(max_losses=3)
    lost, worked = (EXIT_RESTART, 5.0, False), (EXIT_RESTART, 5.0, True)
    assert pauses(policy, lost, lost, worked, lost, lost) == [1, 2, 1, 2, None]


def test_an_outage_is_not_counted_as_a_loss() -> None:
    lost, outage = (EXIT_RESTART, 5.0, False), (EXIT_UNAVAILABLE, 5.0, False)
    assert None not in pauses(RestartPolicy(max_losses=3), lost, outage, outage, outage, lost)


def test_a_job_that_ends_the_process_alone_is_at_fault_and_not_the_device() -> None:
    policy = RestartPolicy(max_losses=3)
    lost: End = (-signal.SIGKILL, 5.0, False)
    assert pauses(policy, lost, lost) == [1, 2]
    for pause_s in (4, 8, 16, 32):
        assert policy.pause_s(-signal.SIGKILL, ran_s=5, committed=False, suspect="b/17") == pause_s
    assert policy.describe() == "2 times in a row and with 1 different jobs alone"
    assert pauses(policy, lost) == [None]


def test_a_device_on_which_five_different_jobs_in_a_row_end_the_process_is_at_fault() -> None:
    policy = RestartPolicy()

    def ends(*suspects: str, committed: bool = False) -> list[float | None]:
        return [policy.pause_s(EXIT_RESTART, ran_s=5, committed=committed, suspect=suspect) for suspect in suspects]

    assert None not in ends("b/1", "b/2", "b/3", "b/4", "b/4", "b/1")
    assert None not in ends("b/5", committed=True), "an image clears the device"
    assert None not in ends("b/1", "b/2", "b/3")
    assert ends("b/4") == [None]
