"""End a worker in time: finish what can be finished, release the rest, and exit by the deadline.

Two threads wait for the shutdown from the start. A signal handler only sets an event, and a hanging engine delays
neither of them.
"""

from __future__ import annotations

import logging
import os
import time
from threading import Event

from latentfarm_worker.service.render_loops import RenderLoops
from latentfarm_worker.service.threads import Threads

log = logging.getLogger(__name__)

_POLL_S = 0.1
#: seconds reserved for the release of all leases once the time is over
_RELEASE_S = 1.0


class Shutdown:
    """End render loops and their process within ``timeout_s`` seconds of ``begin``.

    Normally the process is ended by its owner when ``render_all`` returns. ``os._exit`` ends it if that takes too
    long, if ``begin`` is called twice, or after ``begin_failed``.
    """

    def __init__(self, render_loops: RenderLoops, *, threads: Threads, timeout_s: float) -> None:
        self._render_loops = render_loops
        self._timeout_s = timeout_s
        #: seconds from the release of all leases to the exit
        self._reserve_s = min(2 * _RELEASE_S, timeout_s / 5)
        self._begun, self._hurried = Event(), Event()
        self._exit_code: int | None = None
        #: time.monotonic() of the release of all leases, 0 before ``begin``
        self._drain_until = 0.0
        threads.once("drain", self._drain)
        threads.once("deadline", self._enforce_deadline)

    def begin(self) -> None:
        """Begin; on the second call, exit at once. It is safe in a signal handler: no logging, no new thread."""
        if self._begun.is_set():
            self._hurried.set()
        self._begun.set()

    def begin_failed(self, exit_code: int) -> None:
        """Begin with a render loop that cannot render any more, and exit with this code."""
        self._exit_code = exit_code
        self._begun.set()

    def _drain(self) -> None:
        """Finish what can be finished. After an exception it is called again, with the same deadline."""
        self._begun.wait()
        deadline = self._drain_until = self._drain_until or time.monotonic() + self._timeout_s - self._reserve_s
        log.info("draining: leasing nothing more; jobs that end within %.0f s are finished", self._timeout_s)
        self._render_loops.drain(deadline)
        while time.monotonic() < deadline and not self._hurried.wait(_POLL_S):
            self._render_loops.release_unfinishable()
            if self._exit_code is not None and not self._render_loops.leases_held:
                break
        self._render_loops.release_all()
        if self._hurried.is_set() or self._exit_code is not None:
            os._exit(self._exit_code or 0)

    def _enforce_deadline(self) -> None:
        self._begun.wait()
        if self._hurried.wait(self._timeout_s - self._reserve_s / 2):
            time.sleep(_RELEASE_S)
        # not by a logger, whose lock another thread may hold
        os.write(2, b"the worker did not shut down in time; exiting\n")
        os._exit(self._exit_code or 0)
