"""A real supervisor over small real processes, with real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from tests.conftest import REPOSITORY, until
from tests.support.processes import alive, children_of

pytestmark = pytest.mark.acceptance

PULSE = "from latentfarm_worker.supervise.shared_state import inherited; pulse, name = inherited()"


@contextmanager
def supervised(script: str, tmp_path: Path, *, drain_s: float = 5, hang_s: float = 60) -> Iterator[Supervised]:
    """Run a script under a supervisor; ``pulse`` is its pulse, ``starts`` the folder's file of process ids."""
    note = f"import os, signal, sys, time; open('starts', 'a').write(f'{{os.getpid()}}\\n'); {PULSE}\n"
    limits = ["--drain-s", str(drain_s), "--hang-s", str(hang_s)]
    command = [
        sys.executable,
        "-m",
        "latentfarm_worker.supervise.supervisor",
        *limits,
        "--",
        sys.executable,
        "-c",
        note + script,
    ]
    with (tmp_path / "log").open("w+b") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=log)
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


def test_a_worker_that_dies_is_started_anew_each_time_later(tmp_path: Path) -> None:
    with supervised("sys.exit(3)", tmp_path) as worker:
        until(lambda: len(worker.starts()) == 3)
        log = worker.log()
    assert "ended with exit code 3; starting it anew in 1.0 s" in log
    assert "starting it anew in 2.0 s" in log
    assert log.index("in 1.0 s") < log.index("in 2.0 s")


def test_a_worker_that_commits_between_its_deaths_goes_on_after_a_second(tmp_path: Path) -> None:
    with supervised("pulse.commit(); os.kill(os.getpid(), signal.SIGKILL)", tmp_path) as worker:
        until(lambda: len(worker.starts()) == 4)
        assert worker.process.poll() is None
        assert worker.log().count("ended with signal SIGKILL; starting it anew in 1.0 s") == 3


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(75)", "raise SystemError"])
def test_three_losses_without_an_image_are_the_last(tmp_path: Path, end: str) -> None:
    with supervised(end, tmp_path) as worker:
        assert worker.process.wait(30) == 76
        assert len(worker.starts()) == 3
        assert "lost 3 times in a row without an image" in worker.log()


@pytest.mark.parametrize("code", [0, 2])
def test_a_worker_that_is_set_up_wrong_or_ends_in_order_is_not_started_anew(tmp_path: Path, code: int) -> None:
    with supervised(f"sys.exit({code})", tmp_path) as worker:
        assert worker.process.wait(30) == code
        assert len(worker.starts()) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_being_asked_to_end_is_passed_on_once_for_each_time(tmp_path: Path, how: signal.Signals) -> None:
    script = """
def hear(number, frame):
    open("heard", "a").write(f"{number} ")
    if number == signal.SIGINT: sys.exit(0)
signal.signal(signal.SIGTERM, hear); signal.signal(signal.SIGINT, hear); open("ready", "w")
while True: time.sleep(1)
"""
    with supervised(script, tmp_path, drain_s=60) as worker:
        until((tmp_path / "ready").exists)
        worker.process.send_signal(how)
        until(lambda: (tmp_path / "heard").exists() and (tmp_path / "heard").read_text() == "15 ")
        worker.process.send_signal(how)
        assert worker.process.wait(30) == 0
        assert (tmp_path / "heard").read_text() == "15 2 "


def test_a_worker_that_does_not_listen_is_killed_at_the_deadline(tmp_path: Path) -> None:
    with supervised(
        "signal.signal(15, signal.SIG_IGN); open('ready', 'w'); time.sleep(600)", tmp_path, drain_s=2
    ) as it:
        until((tmp_path / "ready").exists)
        began = time.monotonic()
        it.process.terminate()
        assert it.process.wait(30) == 128 + signal.SIGKILL
        assert time.monotonic() - began < 3.5
        assert not alive(it.starts()[0])


HOLD = "import ctypes; pulse.step(); ctypes.PyDLL(None).sleep(600)"


def test_an_engine_that_stands_still_holding_the_interpreters_lock_says_where_and_is_killed(tmp_path: Path) -> None:
    script = f"import faulthandler; faulthandler.register(signal.SIGUSR2)\ndef stuck():\n  {HOLD}\nstuck()"
    with supervised(script, tmp_path, hang_s=1) as worker:
        until(lambda: len(worker.starts()) == 2)
        assert not alive(worker.starts()[0])
        log = worker.log()
    assert "the engine has made no step for 1 s" in log
    assert "in stuck" in log
    assert "ended with signal SIGKILL; starting it anew in 1.0 s" in log


def test_no_worker_outlives_its_supervisor(tmp_path: Path) -> None:
    with supervised("time.sleep(600)", tmp_path) as worker:
        until(lambda: len(worker.starts()) == 1)
        [child] = children_of(worker.process.pid)
        os.kill(worker.process.pid, signal.SIGKILL)
        until(lambda: not alive(child), timeout_s=10)


def test_a_supervisor_is_small_and_knows_no_torch() -> None:
    script = "import sys, latentfarm_worker.supervise.supervisor; print(*sys.modules, *open('/proc/self/status'))"
    ran = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    told = ran.stdout.split()
    assert not {"torch", "celery", "boto3", "redis", "pydantic"} & set(told)
    assert int(told[told.index("VmRSS:") + 1]) < 30_000  # kB
