"""Let an engine make one step at a time."""

from __future__ import annotations

from threading import Event, Semaphore


class Gate:
    """Lets the engine make one step for each ``open``.

    Attributes:
        begun: steps that have begun, or wait to.
    """

    def __init__(self) -> None:
        self._steps = Semaphore(0)
        self._free = Event()
        self.begun = 0

    def wait(self) -> None:
        """Wait for the next step, on the engine's thread."""
        self.begun += 1
        if not self._free.is_set():
            assert self._steps.acquire(timeout=60)

    def open(self, steps: int = 1) -> None:
        """Let so many steps pass."""
        self._steps.release(steps)

    def open_for_good(self) -> None:
        """Let all steps pass."""
        self._free.set()
        self.open(1_000)
