"""The supervisor: a small process that starts the worker, watches it, ends it when it stands still, and starts it anew.

It is a process of its own because nothing inside the worker can be trusted once a driver call blocks with the
interpreter's lock held. Beside a few small modules of ours it imports nothing but the standard library, so it costs
twenty megabytes and no start-up time.

Exit codes: 0 asked to end, and ended in order, or the worker ended itself in order (a spot notice); 2 the
worker's configuration is wrong; 76 the worker was lost three times in a row without an image in between;
128 and the signal's number if the worker had to be killed while it was ending.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from types import FrameType

from latentfarm.monitoring import logs
from latentfarm_worker.supervise.shared_state import SUPERVISED, Phase, SharedState
from latentfarm_worker.supervise.watchdog import LOOK_S, Watchdog

log = logging.getLogger("supervisor")

EXIT_CONFIGURATION = 2
EXIT_UNAVAILABLE = 3
#: the worker's device is broken for this process: a new one may do
EXIT_BROKEN = 75
EXIT_BEYOND_SAVING = 76
WORKER = (sys.executable, "-m", "latentfarm_worker")

_PR_SET_PDEATHSIG = 1
#: what a worker that was asked twice gets, and what its traceback gets before it is killed
_HURRY_S, _TRACEBACK_S = 5.0, 0.5


@dataclass(frozen=True)
class RestartPolicy:
    """How long a supervisor waits. All in seconds, but for ``losses``."""

    drain_s: float = 25.0
    """From being asked to end to being killed."""
    hang_s: float = 120.0
    """Without a step; the first step of a shape may compile, so it must not be short."""
    first_pause_s: float = 1.0
    """Before the first restart; it doubles with each."""
    longest_pause_s: float = 60.0
    healthy_s: float = 60.0
    """A worker that lived so long is restarted after the first pause again."""
    losses: int = 3
    """Workers lost in a row, without an image in between, that are the last."""


class Supervisor:
    """Runs ``command`` until it ends in order; ``run`` is for the main thread."""

    def __init__(self, command: Sequence[str] = WORKER, patience: RestartPolicy | None = None) -> None:
        self._command = command
        self._patience = patience or RestartPolicy()
        self._pulse = SharedState.shared()
        #: the worker's name in the ledger, whatever process it is
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._asked = 0
        self._woken = Event()

    def run(self) -> int:
        """Return the exit code once the worker has ended for good."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        pause_s, losses = self._patience.first_pause_s, 0
        while not self._asked:
            commits, began = self._pulse.commits, time.monotonic()
            code = self._run_once()
            if self._asked or code in {0, EXIT_CONFIGURATION}:
                return exit_code(code)
            committed = self._pulse.commits > commits
            # not to reach the queue or the store is nobody's loss
            losses = (0 if committed else losses) + (code != EXIT_UNAVAILABLE)
            if losses >= self._patience.losses:
                log.critical("the worker was lost %d times in a row without an image in between; giving up", losses)
                return EXIT_BEYOND_SAVING
            if committed or time.monotonic() - began > self._patience.healthy_s:
                pause_s = self._patience.first_pause_s
            log.warning("the worker ended with %s; starting it anew in %.1f s", _described(code), pause_s)
            self._woken.wait(pause_s)
            pause_s = min(2 * pause_s, self._patience.longest_pause_s)
        return 0

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked += 1
        self._woken.set()

    def _run_once(self) -> int:
        """Start the worker and watch it to its end; return the exit code, negative for a signal."""
        self._pulse.enter(Phase.LOADING)
        descriptor = self._pulse.descriptor
        child = subprocess.Popen(
            self._command,
            env={**os.environ, SUPERVISED: f"{descriptor}:{self.name}"},
            pass_fds=[descriptor],
            # a terminal's Ctrl-C is for us alone, and told on
            start_new_session=True,
            # no thread was ever started here, which is when a preexec_fn is safe
            preexec_fn=die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        )
        log.info("worker %s is process %d", self.name, child.pid)
        watchdog = Watchdog(self._pulse, self._patience.hang_s)
        told, kill_at = 0, float("inf")
        while child.poll() is None:
            if self._asked > told:
                # two signals of one kind might be taken for one
                child.send_signal(signal.SIGINT if told else signal.SIGTERM)
                kill_at = min(kill_at, time.monotonic() + (_HURRY_S if told else self._patience.drain_s))
                told += 1
            if watchdog.stands_still():
                log.error("the engine has made no step for %.0f s; killing process %d", watchdog.still_s, child.pid)
                return _kill(child)
            if time.monotonic() > kill_at:
                log.error("the worker did not end in time; killing process %d", child.pid)
                return _kill(child)
            self._woken.clear()
            if self._asked == told:
                self._woken.wait(LOOK_S)
        return child.wait()


def _kill(child: subprocess.Popen[bytes]) -> int:
    """Have the process say where it stands, then kill it; return what its exit code is to us.

    The signal that makes it speak may end it, in one way or another.
    """
    child.send_signal(signal.SIGUSR2)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_TRACEBACK_S)
    child.kill()
    child.wait()
    return -signal.SIGKILL


def exit_code(code: int) -> int:
    """Return ours for the worker's: one that died of our asking, while it was loading, did as it was told."""
    if code in {0, -signal.SIGTERM, -signal.SIGINT}:
        return 0
    return 128 - code if code < 0 else code


def _described(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def die_with_parent() -> None:
    """Have the kernel ask this process to end when its parent dies, even of kill -9."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> int:
    """Run a worker, or the command given, under a supervisor."""
    parser = argparse.ArgumentParser(prog="python -m latentfarm_worker.supervise.supervisor", description=main.__doc__)
    parser.add_argument("--shutdown-timeout-s", type=float, default=RestartPolicy.drain_s, help="LATENTFARM_SHUTDOWN_TIMEOUT_S")
    parser.add_argument("--stall-timeout-s", type=float, default=RestartPolicy.hang_s, help="LATENTFARM_STALL_TIMEOUT_S")
    parser.add_argument("command", nargs="*", default=WORKER, help="what to run instead of a worker")
    chosen = parser.parse_args()
    supervisor = Supervisor(chosen.command, RestartPolicy(drain_s=chosen.drain_s, hang_s=chosen.hang_s))
    logs.configure(worker=supervisor.name, process="supervisor")
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
