"""What a worker measures of itself, for estimates before a batch is submitted."""

from __future__ import annotations

import time
from threading import Lock

from latentfarm.job import Job


def compute_cost(job: Job, *, pixels: int) -> float:
    """Return what a job costs, in a unit that jobs of any kind share: pixels x steps x U-Net rows."""
    return float(pixels * job.num_inference_steps * job.rows_a_step)


class ThroughputMeter:
    """Sums since the last look, under the names of ``latentfarm.ledger.Speed``; safe to share between threads.

    ``wall_s`` among them are the seconds since then, or since the meter was made.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._lock = Lock()
        self._taken_at = time.monotonic()

    def add(self, **figures: float) -> None:
        """Add to the sums."""
        with self._lock:
            for name, figure in figures.items():
                self._sums[name] = self._sums.get(name, 0.0) + figure

    def take(self) -> dict[str, float]:
        """Return the sums and begin anew."""
        with self._lock:
            taken, self._sums = self._sums, {}
            before, self._taken_at = self._taken_at, time.monotonic()
            # what a beat could not tell comes back, and is told by the next
            taken["wall_s"] = taken.get("wall_s", 0.0) + self._taken_at - before
        return taken
