"""Subscribes to channels of the ledger."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import redis

from latentfarm.errors import UnavailableError
from latentfarm.ledger.redis_errors import translate_errors


class Subscription:
    """A subscription to channels; a context manager. Messages that are sent while Redis is unavailable are missed."""

    def __init__(self, client: redis.Redis, where: str, channels: Sequence[str]) -> None:
        self._where = where
        self._channels = channels
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

    def _message(self, timeout_s: float) -> tuple[str, bytes] | None:
        """Return the channel and the content of the next message, or None after ``timeout_s`` seconds.

        Raises:
            UnavailableError: Redis is unavailable; the next call subscribes again.
        """
        try:
            with translate_errors(self._where):
                if not self._subscribed:
                    self._pubsub.subscribe(*self._channels)
                    self._subscribed = True
                message = self._next(timeout_s)
        except UnavailableError:
            # also if Redis refused to subscribe: redis-py would wait for messages all the same
            self._subscribed = False
            self.close()
            raise
        return (message["channel"].decode(), message["data"]) if message else None

    def _next(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next message. redis-py returns None at once where it has skipped the answer to a subscription."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            message: dict[str, Any] | None = self._pubsub.get_message(timeout=left_s)
            if message or not left_s:
                return message
