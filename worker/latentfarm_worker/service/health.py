"""Liveness and readiness of a worker, from its own state only: no network calls."""

from __future__ import annotations

from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.service.render_loops import RenderLoops
from latentfarm_worker.service.threads import Threads
from latentfarm_worker.supervise.shared_state import SharedState
from latentfarm_worker.supervise.watchdog import Watchdog


class Health:
    """Answers the probes. ``renderer`` is None until the model is warm and the bucket was checked."""

    def __init__(self, state: SharedState, threads: Threads, *, stall_timeout_s: float) -> None:
        self._watchdog = Watchdog(state, stall_timeout_s)
        self._threads = threads
        self.renderer: RenderLoop | RenderLoops | None = None

    def live(self) -> str:
        """Return why the worker must be ended, or an empty text."""
        stalled = self._watchdog.is_stalled()
        return f"the engine has made no step for {self._watchdog.stalled_s:.0f} s" if stalled else ""

    def ready(self) -> str:
        """Return why the worker leases no jobs or does not do all of its work, or an empty text."""
        if self.renderer is None:
            return "the model is loading"
        return "draining" if self.renderer.draining else self._threads.problem()
