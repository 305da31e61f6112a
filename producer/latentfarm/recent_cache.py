"""A bounded cache of the entries used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class RecentCache(Generic[K, V]):
    """Keeps the entries used last, of a total size of at most ``limit``. Thread-safe.

    Args:
        limit: the largest total.
        size: returns the size of a value [default: 1, so that ``limit`` is a number of entries].
    """

    def __init__(self, limit: int, *, size: Callable[[V], int] = lambda _: 1) -> None:
        self._limit = limit
        self._size = size
        self._total = 0
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        """Return a value, None if it is not there."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def pop(self, key: K) -> V | None:
        """Remove and return a value, None if it is not there."""
        with self._lock:
            return self._remove(key)

    def put(self, key: K, value: V) -> None:
        """Keep a value in place of any other of its key, unless it alone is over the limit."""
        with self._lock:
            self._remove(key)
            if self._size(value) > self._limit:
                return
            self._entries[key] = value
            self._total += self._size(value)
            while self._total > self._limit:
                self._remove(next(iter(self._entries)))

    def _remove(self, key: K) -> V | None:
        value = self._entries.pop(key, None)
        if value is not None:
            self._total -= self._size(value)
        return value
