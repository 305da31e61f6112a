"""The ledger's way to Redis: what an outage is called, and the channel on which cancellations are heard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import redis

from latentfarm.errors import SchemaError, UnavailableError

_CHANNEL = "lf:cancelled"
#: what scripts answer to a ledger of another layout
_OTHER_SCHEMA = "LFSCHEMA"


@contextmanager
def reachable(where: str) -> Iterator[None]:
    """Turn an outage of the Redis at ``where`` into ``UnavailableError``, another layout into ``SchemaError``."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.AuthenticationError) as error:
        raise UnavailableError(f"Redis at {where} cannot be used: {error}") from error
    except redis.ResponseError as error:
        name, _, versions = str(error).partition(" ")
        if name != _OTHER_SCHEMA:
            raise
        theirs, _, ours = versions.partition(" ")
        raise SchemaError(where, theirs=theirs, ours=ours) from None


class Cancellations:
    """The names of batches as they are cancelled; a context manager. One that is missed shows as a lost lease."""

    def __init__(self, client: redis.Redis, where: str) -> None:
        self._where = where
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._subscribed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(redis.RedisError):
            self._pubsub.close()

    def wait(self, timeout_s: float) -> str | None:
        """Return the next batch that is cancelled within the time, or None.

        Raises:
            UnavailableError: Redis does not answer; the next call tries again.
        """
        with reachable(self._where):
            if not self._subscribed:
                self._pubsub.subscribe(_CHANNEL)
                self._subscribed = True
            message = self._pubsub.get_message(timeout=timeout_s)
        return message["data"].decode() if message else None
