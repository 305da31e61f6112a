"""Detect an engine that hangs within a step. Only the standard library is imported: the supervisor uses it too."""

from __future__ import annotations

import faulthandler
import os
import time

from latentfarm_worker.supervise.exit_codes import EXIT_RESTART
from latentfarm_worker.supervise.shared_state import Phase, SharedState

#: seconds between two polls of the supervisor, and of a worker that watches itself
POLL_S = 0.2
#: polls that it takes at least to reach the timeout
_MIN_POLLS = 4


class Watchdog:
    """Count the seconds that an engine spends within one step.

    The time between two polls counts for a quarter of the timeout at most: a suspended machine or a stopped container
    must not be taken for a hung engine.
    """

    def __init__(self, state: SharedState, timeout_s: float) -> None:
        self._state = state
        self._timeout_s = timeout_s
        self._steps = state.steps
        self._polled = time.monotonic()
        self.stalled_s = 0.0

    def is_stalled(self) -> bool:
        """Poll once. Call it at least four times within the timeout."""
        now, steps = time.monotonic(), self._state.steps
        if steps != self._steps or self._state.phase is not Phase.STEPPING:
            self._steps, self.stalled_s = steps, 0.0
        else:
            self.stalled_s += min(now - self._polled, self._timeout_s / _MIN_POLLS)
        self._polled = now
        return self.stalled_s > self._timeout_s


def exit_if_stalled(watchdog: Watchdog) -> None:
    """End this process if its engine stalls; for a worker without a supervisor, which calls this every ``POLL_S``.

    A thread detects that only while the interpreter's lock is free. The leases are left to expire, as for a killed
    worker: a job may be the cause.
    """
    if not watchdog.is_stalled():
        return
    # not by a logger: Celery replaces sys.stderr, and the stalled thread may hold that lock
    os.write(2, b"the engine is stalled; ending this process\n")
    faulthandler.dump_traceback(file=2, all_threads=True)
    os._exit(EXIT_RESTART)
