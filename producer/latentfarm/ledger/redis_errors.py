"""The ledger's way to Redis: what an outage is called, and the channel on which cancellations are heard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from latentfarm.errors import SchemaError, UnavailableError

#: what scripts answer to a ledger of another layout
_OTHER_SCHEMA = "LFSCHEMA"


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
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
