"""Answers that many clients poll, made once for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cached(Generic[Value]):
    """Keeps values for ``ttl_s`` seconds. Clients that wait for the same value wait for one call.

    An error is passed to all that wait, and not kept. At most ``max_keys`` values are kept.
    """

    def __init__(self, ttl_s: float, *, max_keys: int = 1_000) -> None:
        self._ttl_s = ttl_s
        self._max_keys = max_keys
        self._values: dict[Hashable, tuple[float, asyncio.Task[Value]]] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[Value]]) -> Value:
        """Return the value of ``key``, made by ``make`` if none is fresh."""
        now = time.monotonic()
        made, task = self._values.get(key, (0.0, None))
        if task is None or (task.done() and (now - made > self._ttl_s or task.cancelled() or task.exception())):
            self._forget(now)
            task = asyncio.create_task(_await(make))
            # if all clients have hung up, no other code reads its error
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            self._values[key] = (now, task)
        # a client that hangs up must not cancel the call of the others
        return await asyncio.shield(task)

    def _forget(self, now: float) -> None:
        if len(self._values) >= self._max_keys:
            fresh = {key: entry for key, entry in self._values.items() if now - entry[0] <= self._ttl_s}
            self._values = fresh if len(fresh) < self._max_keys else {}


async def _await(make: Callable[[], Awaitable[Value]]) -> Value:
    return await make()
