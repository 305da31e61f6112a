"""The way out: jobs that can be finished are, the others go back at once, and by the deadline the process is gone.

Two threads wait for it from the start, so that a signal's handler, or an engine that is blocked for good, has nothing
to do but to set an event.
"""

from __future__ import annotations

import logging
import os
import time
from threading import Event, Thread

from latentfarm_worker.service.render_loop import RenderLoop

log = logging.getLogger(__name__)

_LOOK_S = 0.1
#: what giving jobs back may take once there is no time left
_LAST_S = 1.0


class Shutdown:
    """Ends a renderer within ``drain_s`` seconds of ``begin``.

    The process itself is ended by its owner, who sees ``render_all`` return; by ``os._exit`` where that does not
    happen in time, where it was asked a second time, and where the device is lost.
    """

    def __init__(self, renderer: RenderLoop, *, drain_s: float) -> None:
        self._renderer = renderer
        self._drain_s = drain_s
        #: from giving back everything to the end
        self._last_s = min(2 * _LAST_S, drain_s / 5)
        self._begun, self._hurried = Event(), Event()
        self._exit_code: int | None = None
        Thread(target=self._carry_out, name="drain", daemon=True).start()
        Thread(target=self._end, name="deadline", daemon=True).start()

    def begin(self) -> None:
        """Begin; the second time, end at once. It starts nothing and logs nothing: a signal's handler may call it."""
        if self._begun.is_set():
            self._hurried.set()
        self._begun.set()

    def abandon(self, exit_code: int) -> None:
        """Begin with a renderer that cannot render any more, and end the process with this code."""
        self._exit_code = exit_code
        self._begun.set()

    def _carry_out(self) -> None:
        self._begun.wait()
        until = time.monotonic() + self._drain_s - self._last_s
        log.info("leasing nothing more; what can be done in %.0f s is finished", self._drain_s)
        self._renderer.drain(until)
        while time.monotonic() < until and not self._hurried.wait(_LOOK_S):
            self._renderer.give_back_late()
            if self._exit_code is not None and not self._renderer.holds_jobs:
                break
        self._renderer.give_back_all()
        if self._hurried.is_set() or self._exit_code is not None:
            os._exit(self._exit_code or 0)

    def _end(self) -> None:
        self._begun.wait()
        if self._hurried.wait(self._drain_s - self._last_s / 2):
            time.sleep(_LAST_S)
        # neither a log's lock nor a handler of ours may be in the way now
        os.write(2, b"the worker did not end in order and in time; it is ended\n")
        os._exit(self._exit_code or 0)
