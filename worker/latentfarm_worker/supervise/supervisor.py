"""The supervisor: a small process that runs one worker, or one on each device, and restarts those that die or hang.

It is a process of its own because no thread of a worker runs while a driver call blocks with the interpreter's lock
held. It takes about twenty megabytes: it imports only the standard library and a few small modules.

The exit code is the highest of its workers' (see ``exit_codes``): one that is not restarted does not end the others.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from latentfarm.errors import LatentfarmError
from latentfarm.monitoring import logs
from latentfarm_worker.supervise.at_risk import AtRisk
from latentfarm_worker.supervise.devices import ANY_DEVICE, Device, parse_devices
from latentfarm_worker.supervise.exit_codes import (
    EXIT_CONFIGURATION,
    EXIT_CRASH_LOOP,
    EXIT_RESTART,
    describe,
    exit_code_of,
)
from latentfarm_worker.supervise.restart_policy import RestartPolicy
from latentfarm_worker.supervise.shared_state import Phase, SharedState
from latentfarm_worker.supervise.watchdog import POLL_S
from latentfarm_worker.supervise.worker_process import Timeouts, WorkerProcess

log = logging.getLogger("supervisor")

#: a worker that still loads has no handlers: a signal that requests its end ends it at once
_STOPPED_WHILE_LOADING = frozenset({-signal.SIGTERM, -signal.SIGINT})

WORKER = (sys.executable, "-m", "latentfarm_worker")


class SupervisedWorker:
    """A worker on one device, across the restarts of its process."""

    def __init__(self, command: Sequence[str], device: Device, timeouts: Timeouts) -> None:
        self._command = command
        self._device = device
        self._timeouts = timeouts
        self._policy = RestartPolicy()
        self._state = SharedState.shared()
        #: its name in the ledger
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._log = logging.LoggerAdapter(log, {"worker": self.name})
        self._label = f"the worker on {device.name}" if device.name else "the worker"
        #: None until it has ended for good
        self.exit_code: int | None = None
        self._process: WorkerProcess | None = None
        self._start_at = 0.0

    def poll(self, stop_requests: int) -> None:
        """Do what is due now. ``stop_requests`` is how often a stop was requested so far."""
        if self._process is None:
            if stop_requests:
                self.exit_code = 0
            elif time.monotonic() >= self._start_at:
                self._start()
        elif (returncode := self._process.poll(stop_requests)) is not None:
            self._process = None
            self._on_exit(returncode, stop_requested=stop_requests > 0)

    def _start(self) -> None:
        self._started, self._commits = time.monotonic(), self._state.commits
        try:
            self._process = WorkerProcess(
                self.name, self._command, self._device.environment, self._state, self._timeouts, self._log
            )
        except (OSError, subprocess.SubprocessError) as error:
            # such as no memory for a process; the workers on other devices must go on
            self._log.error("%s cannot be started: %s", self._label, error)
            self._on_exit(EXIT_RESTART, stop_requested=False)
            return
        self._log.info("%s is %s, process %d", self._label, self.name, self._process.pid)

    def _on_exit(self, returncode: int, *, stop_requested: bool) -> None:
        at_risk = self._take_at_risk(returncode)
        how = f"{describe(returncode)}{_during(at_risk)}"
        stopped = stop_requested or self._state.stopping or returncode in _STOPPED_WHILE_LOADING
        if stopped or returncode == EXIT_CONFIGURATION:
            self.exit_code = exit_code_of(returncode)
            self._log.log(logging.ERROR if self.exit_code else logging.INFO, "%s ended with %s", self._label, how)
            return
        if returncode == 0:
            how += ", though nothing requested it"
        ran_s, committed = time.monotonic() - self._started, self._state.commits > self._commits
        suspect = at_risk.suspect if at_risk else None
        pause_s = self._policy.pause_s(returncode, ran_s=ran_s, committed=committed, suspect=suspect)
        if pause_s is None:
            self.exit_code = EXIT_CRASH_LOOP
            message = "%s ended with %s; it was lost %s without an image in between and is not restarted"
            self._log.critical(message, self._label, how, self._policy.describe())
            return
        self._log.warning("%s ended with %s; restarting it in %.1f s", self._label, how, pause_s)
        self._start_at = time.monotonic() + pause_s

    def _take_at_risk(self, returncode: int) -> AtRisk | None:
        """Return the jobs in the call of the device in which the process ended, or None if it ended elsewhere.

        The next process reads the same from the state.
        """
        match self._state.phase:
            case Phase.LOADING:
                # it may not have read yet what the process before it left
                return None
            case Phase.IDLE if returncode != EXIT_RESTART:
                self._state.forget_at_risk()
        return self._state.at_risk()


def _during(at_risk: AtRisk | None) -> str:
    """Return which jobs were at risk in words, for a log line."""
    if at_risk is None or not at_risk.leases:
        return ""
    if at_risk.suspect:
        return f" while rendering {at_risk.suspect} alone"
    return f" while rendering {len(at_risk.leases)} jobs"


class Supervisor:
    """Runs a worker on each device until all have ended. ``run`` is for the main thread."""

    def __init__(self, command: Sequence[str], devices: Sequence[Device], timeouts: Timeouts) -> None:
        self._workers = [SupervisedWorker(command, device, timeouts) for device in devices]
        self._stop_requests = 0

    def run(self) -> int:
        """Return the highest exit code once all workers have ended for good."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # `nohup` ignores SIGHUP, that of a closed terminal
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        # a pipe, not an Event: the code that a signal interrupts may hold the Event's lock
        woken, wake = os.pipe()
        for end in (woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake)
        running = self._workers
        while running:
            for worker in running:
                worker.poll(self._stop_requests)
            running = [worker for worker in running if worker.exit_code is None]
            if running:
                select.select([woken], [], [], POLL_S)
                with suppress(BlockingIOError):
                    os.read(woken, 64)
        return max(worker.exit_code or 0 for worker in self._workers)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_requests += 1


def main() -> int:
    """Run a worker, or the command given, under a supervisor."""
    defaults = Timeouts()
    parser = argparse.ArgumentParser(prog="python -m latentfarm_worker.supervise.supervisor", description=main.__doc__)
    parser.add_argument("--devices", default="", help="one worker for each: all, cpu:N, or GPUs such as 0,1")
    parser.add_argument(
        "--shutdown-timeout-s",
        metavar="SECONDS",
        type=float,
        default=defaults.shutdown_s,
        help="from a stop request to SIGKILL [default: %(default)g]",
    )
    parser.add_argument(
        "--stall-timeout-s",
        metavar="SECONDS",
        type=float,
        default=defaults.stall_s,
        help="without a step until a worker is killed [default: %(default)g]",
    )
    parser.add_argument("command", nargs="*", default=WORKER, help="the program to run [default: a worker]")
    chosen = parser.parse_args()
    logs.configure(process="supervisor")
    try:
        devices = parse_devices(chosen.devices) if chosen.devices else [ANY_DEVICE]
    except LatentfarmError as error:
        log.critical("no worker was started: %s", error)
        return error.exit_code
    timeouts = Timeouts(shutdown_s=chosen.shutdown_timeout_s, stall_s=chosen.stall_timeout_s)
    return Supervisor(chosen.command, devices, timeouts).run()


if __name__ == "__main__":
    sys.exit(main())
