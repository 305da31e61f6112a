"""Subscribes to the channel of cancelled batches."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Self

import redis

from latentfarm.errors import UnavailableError
from latentfarm.ledger.redis_errors import translate_errors

_CHANNEL = "{lf}:cancelled"


class Cancellations:
    """A subscription to cancelled batches; a context manager.

    A message may be missed. Then the worker finds its leases lost at the next renewal.
    """

    def __init__(self, client: redis.Redis, where: str) -> None:
        self._where = where
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._subscribed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription."""
        with suppress(redis.RedisError, OSError):
            self._pubsub.close()

    def wait(self, timeout_s: float) -> str | None:
        """Return the name of the next batch that is cancelled, or None after ``timeout_s`` seconds.

        Raises:
            UnavailableError: Redis is unavailable; the next call subscribes again.
        """
        try:
            with translate_errors(self._where):
                if not self._subscribed:
                    self._pubsub.subscribe(_CHANNEL)
                    self._subscribed = True
                message = self._pubsub.get_message(timeout=timeout_s)
        except UnavailableError:
            # also if Redis refused to subscribe: redis-py would wait for messages all the same
            self._subscribed = False
            self.close()
            raise
        return message["data"].decode() if message else None
