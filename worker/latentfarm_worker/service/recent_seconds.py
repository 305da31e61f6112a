"""The seconds that recent steps or requests took."""

from __future__ import annotations

import statistics
from collections import deque

#: measurements that a median is of
_RECENT = 16


class RecentSeconds:
    """The median of recent measurements, which a single slow one does not change. Thread-safe."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)

    @property
    def median(self) -> float | None:
        """Return the median seconds, None before the first."""
        # a copy, since other threads add to it
        recent = self._recent.copy()
        return statistics.median(recent) if recent else None

    def add(self, seconds: float) -> None:
        """Add a measurement."""
        self._recent.append(seconds)
