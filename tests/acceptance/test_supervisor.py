"""A real supervisor over small real processes, with real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from tests.conftest import REPOSITORY, until
from tests.support.processes import alive, children_of

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

STATE = "from latentfarm_worker.supervise.shared_state import from_environment; state, name = from_environment()"


@contextmanager
def supervised(
    script: str,
    tmp_path: Path,
    *options: str,
    shutdown_s: float = 5,
    stall_s: float = 60,
    ignored: str = "",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Supervised]:
    """Run a script under a supervisor; ``state`` is its shared state, ``starts`` a file with its process ids.

    ``ignored`` names the signals that a shell ignores before it runs the supervisor.
    """
    preamble = f"import os, signal, sys, time; open('starts', 'a').write(f'{{os.getpid()}}\\n'); {STATE}\n"
    limits = ["--shutdown-timeout-s", str(shutdown_s), "--stall-timeout-s", str(stall_s)]
    command = [sys.executable, "-m", "latentfarm_worker.supervise.supervisor", *options, *limits]
    command += ["--", sys.executable, "-c", preamble + script]
    shell = ["sh", "-c", f"trap '' {ignored}; exec \"$@\"", "sh"] if ignored else []
    with (tmp_path / "log").open("w+b") as log:
        process = subprocess.Popen([*shell, *command], cwd=tmp_path, stderr=log, env=environment)
        try:
            yield Supervised(process, log, tmp_path / "starts")
        finally:
            process.kill()
            process.wait()


class Supervised:
    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], starts: Path) -> None:
        self.process = process
        self._log = log
        self._starts = starts

    def starts(self) -> list[int]:
        return [int(line) for line in self._starts.read_text().splitlines()] if self._starts.exists() else []

    def log(self) -> str:
        return Path(self._log.name).read_text()


def test_a_worker_that_dies_is_restarted_after_a_longer_pause_each_time(tmp_path: Path) -> None:
    with supervised("sys.exit(3)", tmp_path) as worker:
        until(lambda: len(worker.starts()) == 3)
        log = worker.log()
    assert "ended with exit code 3; restarting it in 1.0 s" in log
    assert "restarting it in 2.0 s" in log
    assert log.index("in 1.0 s") < log.index("in 2.0 s")


def test_a_worker_that_commits_images_is_restarted_after_a_second(tmp_path: Path) -> None:
    with supervised("state.commit(); os.kill(os.getpid(), signal.SIGKILL)", tmp_path) as worker:
        until(lambda: len(worker.starts()) == 4)
        assert worker.process.poll() is None
        assert worker.log().count("ended with signal SIGKILL; restarting it in 1.0 s") == 3


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(75)", "raise SystemError"])
def test_a_worker_is_not_restarted_after_three_losses_without_an_image(tmp_path: Path, end: str) -> None:
    with supervised(end, tmp_path) as worker:
        assert worker.process.wait(30) == 76
        assert len(worker.starts()) == 3
        assert "lost 3 times in a row without an image" in worker.log()


def test_a_misconfigured_worker_is_not_restarted(tmp_path: Path) -> None:
    with supervised("sys.exit(2)", tmp_path) as worker:
        assert worker.process.wait(30) == 2
        assert len(worker.starts()) == 1


def test_a_worker_that_ends_with_0_unasked_is_lost_and_restarted(tmp_path: Path) -> None:
    with supervised("sys.exit(0)", tmp_path) as worker:
        assert worker.process.wait(30) == 76
        assert len(worker.starts()) == 3
        assert "ended with exit code 0, though nothing requested it; restarting it in 1.0 s" in worker.log()


@pytest.mark.parametrize("code", [0, 137])
def test_a_worker_that_was_requested_to_stop_is_not_restarted(tmp_path: Path, code: int) -> None:
    # as for a spot notice
    with supervised(f"state.enter(1); state.stop(); os._exit({code})", tmp_path) as worker:
        assert worker.process.wait(30) == code
        assert len(worker.starts()) == 1


def test_a_signal_to_the_loading_worker_itself_ends_it_for_good(tmp_path: Path) -> None:
    with supervised("open('ready', 'w'); time.sleep(600)", tmp_path) as worker:
        until((tmp_path / "ready").exists)
        os.kill(worker.starts()[0], signal.SIGTERM)
        assert worker.process.wait(30) == 0
        assert len(worker.starts()) == 1


def test_one_of_two_workers_that_ends_unasked_is_restarted_beside_the_other(tmp_path: Path) -> None:
    script = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); open(f'{name}-{os.getpid()}', 'w')\n"
    script += (
        "if os.environ['LATENTFARM_METRICS_ADDRESS'].endswith('9001'): state.commit(); sys.exit(0)\ntime.sleep(600)"
    )
    environment = {**os.environ, "LATENTFARM_METRICS_ADDRESS": "127.0.0.1:9000"}
    with supervised(script, tmp_path, "--devices", "cpu:2", environment=environment) as worker:
        until(lambda: len(worker.starts()) == 4)
        assert worker.process.poll() is None
        assert "the worker on cpu 1 ended with exit code 0, though nothing requested it" in worker.log()
        assert len({path.name.rpartition("-")[0] for path in tmp_path.glob("*-*-*-*")}) == 2, "each keeps its name"
        worker.process.terminate()
        assert worker.process.wait(30) == 0


DIE = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("end", "how"),
    [(DIE, "signal SIGKILL"), ("state.enter(1); sys.exit(75)", "exit code 75")],
    ids=["killed", "sticky"],
)
def test_a_job_that_ends_its_worker_alone_is_named_and_not_counted_against_the_device(
    tmp_path: Path, end: str, how: str
) -> None:
    script = f"state.enter(1); state.record_at_risk([('b/17', 3)], lone=True); state.step(); {end}"
    with supervised(script, tmp_path) as worker:
        until(lambda: worker.log().count(f"ended with {how} while rendering b/17 alone; restarting it in") == 3)
        assert worker.process.poll() is None


def test_a_death_outside_a_call_of_the_device_accuses_no_job(tmp_path: Path) -> None:
    script = f"""
open(f'found-{{os.getpid()}}', 'w').write(repr(state.at_risk()))
state.enter(1); state.record_at_risk([('b/17', 3)], lone=True); state.step(); state.enter(1); {DIE}
"""
    with supervised(script, tmp_path) as worker:
        assert worker.process.wait(30) == 76
        assert [(tmp_path / f"found-{start}").read_text() for start in worker.starts()] == ["None"] * 3
        assert "b/17" not in worker.log()


def test_the_jobs_at_risk_are_passed_on_until_a_process_has_read_them(tmp_path: Path) -> None:
    script = f"""
open(f'found-{{os.getpid()}}', 'w').write(repr(state.at_risk()))
if len(open('starts').readlines()) == 1:
    state.enter(1); state.record_at_risk([('b/1', 3), ('b/2', 4)], lone=False); state.step()
{DIE}
"""
    with supervised(script, tmp_path) as worker:
        # the second dies while it loads
        until(lambda: len(worker.starts()) == 3)
        found = [tmp_path / f"found-{start}" for start in worker.starts()]
        until(lambda: all(path.exists() and path.read_text() for path in found))
        left = "AtRisk(leases=(('b/1', 3), ('b/2', 4)), lone=False)"
        assert [path.read_text() for path in found] == ["None", left, left]
        assert "ended with signal SIGKILL while rendering 2 jobs" in worker.log()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_each_stop_request_is_passed_on_once(tmp_path: Path, how: signal.Signals) -> None:
    script = """
def on_signal(number, frame):
    open("received", "a").write(f"{number} ")
    if number == signal.SIGINT: sys.exit(0)
signal.signal(signal.SIGTERM, on_signal); signal.signal(signal.SIGINT, on_signal); open("ready", "w")
while True: time.sleep(1)
"""
    with supervised(script, tmp_path, shutdown_s=60) as worker:
        until((tmp_path / "ready").exists)
        worker.process.send_signal(how)
        until(lambda: (tmp_path / "received").exists() and (tmp_path / "received").read_text() == "15 ")
        worker.process.send_signal(how)
        assert worker.process.wait(30) == 0
        assert (tmp_path / "received").read_text() == "15 2 "


def test_a_worker_that_ignores_the_stop_request_is_killed_at_the_deadline(tmp_path: Path) -> None:
    script = "signal.signal(15, signal.SIG_IGN); open('ready', 'w'); time.sleep(600)"
    with supervised(script, tmp_path, shutdown_s=2) as it:
        until((tmp_path / "ready").exists)
        began = time.monotonic()
        it.process.terminate()
        assert it.process.wait(30) == 128 + signal.SIGKILL
        assert time.monotonic() - began < 3.5
        assert not alive(it.starts()[0])


HOLD = "import ctypes; state.step(); ctypes.PyDLL(None).sleep(600)"


def test_a_worker_stalled_with_the_interpreters_lock_prints_a_traceback_and_is_killed(tmp_path: Path) -> None:
    script = f"import faulthandler; faulthandler.register(signal.SIGUSR2)\ndef stuck():\n  {HOLD}\nstuck()"
    with supervised(script, tmp_path, stall_s=1) as worker:
        until(lambda: len(worker.starts()) == 2)
        assert not alive(worker.starts()[0])
        log = worker.log()
    assert "the engine has made no step for 1 s" in log
    assert "in stuck" in log
    assert "ended with signal SIGKILL; restarting it in 1.0 s" in log


def test_workers_start_with_default_signals_though_a_script_runs_the_supervisor_in_the_background(
    tmp_path: Path,
) -> None:
    script = "open('signals', 'w').write(str([signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGQUIT)]))\n"
    script += (
        "open('ready', 'w')\ntry: time.sleep(600)\nexcept KeyboardInterrupt: open('interrupted', 'w'); state.stop()"
    )
    with supervised(script, tmp_path, ignored="INT TERM QUIT") as worker:
        until((tmp_path / "ready").exists)
        assert (tmp_path / "signals").read_text() == str([signal.SIG_DFL] * 2)
        os.kill(worker.starts()[0], signal.SIGINT)
        until((tmp_path / "interrupted").exists)
        assert worker.process.wait(30) == 0


def test_a_worker_that_cannot_be_started_is_lost_and_ends_no_other() -> None:
    command = [sys.executable, "-m", "latentfarm_worker.supervise.supervisor", "--", "/no/such/program"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 76
    assert ran.stderr.count("the worker cannot be started: ") == 3
    assert "Traceback" not in ran.stderr


def test_one_supervisor_runs_a_worker_on_each_device_and_returns_the_highest_exit_code(tmp_path: Path) -> None:
    script = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); open('ready-' + name, 'w')\n"
    # the second of the workers, by its port, is misconfigured
    script += "if os.environ['LATENTFARM_METRICS_ADDRESS'].endswith('9001'): sys.exit(2)\ntime.sleep(600)"
    environment = {**os.environ, "LATENTFARM_METRICS_ADDRESS": "127.0.0.1:9000"}
    with supervised(script, tmp_path, "--devices", "cpu:3", environment=environment) as worker:
        until(lambda: len(list(tmp_path.glob("ready-*"))) == 3)
        until(lambda: "the worker on cpu 1 ended with exit code 2" in worker.log())
        assert len(children_of(worker.process.pid)) == 2, "the others go on, without a process between"
        worker.process.terminate()
        assert worker.process.wait(30) == 2
        assert len(worker.starts()) == 3


def test_devices_that_do_not_exist_are_refused_before_a_worker_starts(tmp_path: Path) -> None:
    with supervised("", tmp_path, "--devices", "cpu:0") as worker:
        assert worker.process.wait(30) == 2
        assert "no worker was started: devices 'cpu:0'" in worker.log()
        assert worker.starts() == []


KILL_WRITERS = """
import os, random, signal, time
from latentfarm_worker.supervise.shared_state import SharedState
state = SharedState.shared()
calls = [[(f"b/{call}-{job}", call) for job in range(64)] for call in range(5)]
expected = [None, *map(tuple, calls)]
for _ in range(300):
    writer = os.fork()
    if not writer:
        while True:
            for call in calls:
                state.record_at_risk(call, lone=False)
    time.sleep(random.uniform(0.001, 0.004))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    found = state.at_risk()
    assert (found and found.leases) in expected, found
assert state.at_risk()
"""


def test_no_kill_in_the_midst_of_a_write_mixes_the_jobs_at_risk() -> None:
    subprocess.run([sys.executable, "-c", KILL_WRITERS], cwd=REPOSITORY, check=True, timeout=60)


def test_no_worker_outlives_its_supervisor(tmp_path: Path) -> None:
    with supervised("time.sleep(600)", tmp_path) as worker:
        until(lambda: len(worker.starts()) == 1)
        [child] = children_of(worker.process.pid)
        os.kill(worker.process.pid, signal.SIGKILL)
        until(lambda: not alive(child), timeout_s=10)


def test_a_supervisor_is_small_and_imports_no_torch() -> None:
    script = "import sys, latentfarm_worker.supervise.supervisor; print(*sys.modules, *open('/proc/self/status'))"
    ran = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = ran.stdout.split()
    assert not {"torch", "celery", "boto3", "redis", "pydantic"} & set(found)
    assert int(found[found.index("VmRSS:") + 1]) < 30_000  # kB
