"""Whether an engine stands still; it imports nothing but the standard library, for the supervisor asks it."""

from __future__ import annotations

import faulthandler
import os
import time
from threading import Thread

from latentfarm_worker.supervise.shared_state import Phase, SharedState

#: seconds between two looks
LOOK_S = 0.2


class Watchdog:
    """Counts the seconds without a step by its own looks: a machine that slept has no engine that hangs."""

    def __init__(self, pulse: SharedState, hang_s: float) -> None:
        self._pulse = pulse
        self._hang_s = hang_s
        self._steps = pulse.steps
        self._looked = time.monotonic()
        self.still_s = 0.0

    def stands_still(self) -> bool:
        """Look once."""
        now, steps = time.monotonic(), self._pulse.steps
        if steps != self._steps or self._pulse.phase is not Phase.STEPPING:
            self._steps, self.still_s = steps, 0.0
        else:
            self.still_s += min(now - self._looked, 5 * LOOK_S)
        self._looked = now
        return self.still_s > self._hang_s


def start_self_watchdog(pulse: SharedState, *, hang_s: float, exit_code: int) -> None:
    """End this process when its engine stands still; for a worker without a supervisor.

    A thread can see that only while the interpreter's lock is free. Its leases are left to run out, charged, as those
    of a worker that was killed: the job may be to blame.
    """
    watchdog = Watchdog(pulse, hang_s)

    def watch() -> None:
        while not watchdog.stands_still():
            time.sleep(LOOK_S)
        # Celery puts a logger in place of sys.stderr; its lock may be the very thing that is held
        os.write(2, b"the engine stands still; the worker is ended\n")
        faulthandler.dump_traceback(file=2, all_threads=True)
        os._exit(exit_code)

    Thread(target=watch, name="watchdog", daemon=True).start()
