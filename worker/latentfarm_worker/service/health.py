"""Whether a worker lives and whether it is ready: two questions that are answered without asking anybody."""

from __future__ import annotations

import time

from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.supervise.shared_state import Phase, SharedState


class Health:
    """Looks at the pulse; ``renderer`` is None until the model is warm and the bucket was probed."""

    def __init__(self, pulse: SharedState, *, hang_s: float) -> None:
        self._pulse = pulse
        self._hang_s = hang_s
        self._steps, self._since = pulse.steps, time.monotonic()
        self.renderer: RenderLoop | None = None

    def live(self) -> str:
        """Return why the worker should be ended, or nothing: the engine stands still within a step."""
        now, steps = time.monotonic(), self._pulse.steps
        if steps != self._steps or self._pulse.phase is not Phase.STEPPING:
            self._steps, self._since = steps, now
        still_s = now - self._since
        return f"the engine has made no step for {still_s:.0f} s" if still_s > self._hang_s else ""

    def ready(self) -> str:
        """Return why the worker leases nothing, or nothing."""
        if self.renderer is None:
            return "the model is being loaded"
        return "draining" if self.renderer.draining else ""
