"""Translates errors of Redis into those of latentfarm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from latentfarm.errors import SchemaError, UnavailableError

#: first word of the scripts' error if the ledger has another schema
_OTHER_SCHEMA = "LFSCHEMA"


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Raise ``UnavailableError`` for an outage of the Redis at ``where``, ``SchemaError`` for another schema."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.AuthenticationError) as error:
        raise UnavailableError(f"Redis at {where} is unavailable: {error}") from error
    except redis.ResponseError as error:
        name, _, versions = str(error).partition(" ")
        if name != _OTHER_SCHEMA:
            raise
        theirs, _, ours = versions.partition(" ")
        raise SchemaError(where, theirs=theirs, ours=ours) from None
