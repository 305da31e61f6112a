"""Rates: a token bucket for each name, of bounded memory."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable


class TokenBuckets:
    """A bucket for each name. It holds ``per_minute`` tokens at first, and as many return to it in a minute.

    Args:
        per_minute: tokens.
        max_names: names that are known at once; of more, the one unused for longest is forgotten, with a full bucket.
        clock: seconds.
    """

    def __init__(self, per_minute: int, *, max_names: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = float(per_minute)
        self._rate = per_minute / 60
        self._max_names = max_names
        self._clock = clock
        #: tokens at a time
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> int:
        """Take a token of ``name``. Return 0, or if there is none the seconds until there is one."""
        now = self._clock()
        tokens, then = self._buckets.get(name, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - then) * self._rate)
        # after exactly the reported wait, sums of floats may be a little less
        taken = tokens >= 1 - 1e-6
        self._buckets[name] = (max(0.0, tokens - taken), now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > self._max_names:
            self._buckets.popitem(last=False)
        return 0 if taken else max(1, math.ceil((1 - tokens) / self._rate))

    def __len__(self) -> int:
        return len(self._buckets)
