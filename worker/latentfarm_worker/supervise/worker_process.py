"""One process of a worker: started, watched, stopped on request, and killed if it stalls or does not stop in time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import Logger, LoggerAdapter

from latentfarm.child_process import start_child
from latentfarm_worker.supervise.shared_state import SUPERVISED, SharedState
from latentfarm_worker.supervise.watchdog import Watchdog

#: seconds for a worker to exit after a second stop request, and to write its traceback before it is killed
_SECOND_STOP_S, _TRACEBACK_S = 5.0, 0.5


@dataclass(frozen=True)
class Timeouts:
    """Limits of a worker, in seconds."""

    shutdown_s: float = 25.0
    """From a stop request to SIGKILL."""
    stall_s: float = 120.0
    """Without a step. The first step of a shape may compile, so it must not be short."""


class WorkerProcess:
    """A running process that reports its progress in ``state``."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        state: SharedState,
        timeouts: Timeouts,
        log: LoggerAdapter[Logger],
    ) -> None:
        self._timeouts = timeouts
        self._log = log
        state.begin()
        self._watchdog = Watchdog(state, timeouts.stall_s)
        self._signals_sent = 0
        self._kill_at = float("inf")
        self._killing = False
        self._process = start_child(
            command,
            env={**os.environ, **environment, SUPERVISED: f"{state.descriptor}:{name}"},
            pass_fds=[state.descriptor],
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self, stop_requests: int) -> int | None:
        """Do what is due now; return the return code once the process has ended.

        Args:
            stop_requests: How often a stop was requested so far.
        """
        if (returncode := self._process.poll()) is not None:
            # the signal that requests a traceback may end the process before the kill does
            return -signal.SIGKILL if self._killing else returncode
        now = time.monotonic()
        if self._killing:
            if now > self._kill_at:
                self._process.kill()
            return None
        if stop_requests > self._signals_sent:
            self._stop(now)
        if self._watchdog.is_stalled():
            self._kill(now, f"the engine has made no step for {self._watchdog.stalled_s:.0f} s")
        elif now > self._kill_at:
            self._kill(now, "the worker did not stop in time")
        return None

    def _stop(self, now: float) -> None:
        # another signal the second time: two pending signals of one kind would arrive as one
        self._process.send_signal(signal.SIGINT if self._signals_sent else signal.SIGTERM)
        limit_s = _SECOND_STOP_S if self._signals_sent else self._timeouts.shutdown_s
        self._kill_at = min(self._kill_at, now + limit_s)
        self._signals_sent += 1

    def _kill(self, now: float, reason: str) -> None:
        """Request a traceback of all threads, and the kill soon after."""
        self._log.error("%s; killing process %d", reason, self._process.pid)
        self._process.send_signal(signal.SIGUSR2)
        self._killing, self._kill_at = True, now + _TRACEBACK_S
