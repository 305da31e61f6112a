"""One Redis client and the ledger's scripts: the base of every part of the ledger."""

from __future__ import annotations

from typing import Any, Self

import redis

from latentfarm.ledger.cancellations import Cancellations
from latentfarm.ledger.lua_scripts import Script, Scripts
from latentfarm.ledger.redis_errors import translate_errors


class LedgerClient:
    """A Redis client with the ledger's scripts.

    Thread-safe. Every method raises ``UnavailableError`` if Redis is unavailable, and ``SchemaError`` if another
    version of latentfarm wrote the ledger.
    """

    def __init__(self, client: redis.Redis, *, where: str) -> None:
        self.redis = client
        #: the URL without its password, for error messages
        self.where = where
        self.scripts = Scripts(client)

    @classmethod
    def connect(cls, url: str) -> Self:
        """Return a ledger on a ``redis://``, ``rediss://`` or ``unix://`` URL. Nothing is sent yet."""
        client = redis.Redis.from_url(
            url, socket_timeout=10, socket_connect_timeout=5, health_check_interval=10, decode_responses=False
        )
        return cls(client, where=_without_password(url))

    def run(self, script: Script, *args: Any) -> Any:
        """Run a script, with the errors of this class."""
        with translate_errors(self.where):
            return script(args=list(args))

    def ping(self) -> str:
        """Return the version of the Redis server."""
        with translate_errors(self.where):
            return str(self.redis.info("server")["redis_version"])

    def now_us(self) -> int:
        """Return Redis ``TIME`` in microseconds. The epoch of every lease so far is lower."""
        with translate_errors(self.where):
            seconds, micros = self.redis.time()
        return int(seconds) * 1_000_000 + int(micros)

    def memory_bytes(self) -> int:
        """Return the memory in use by the Redis server."""
        with translate_errors(self.where):
            return int(self.redis.info("memory")["used_memory"])

    def cancellations(self) -> Cancellations:
        """Subscribe to batches that are cancelled from now on."""
        return Cancellations(self.redis, self.where)


def _without_password(url: str) -> str:
    # a password is before the host, or in the query
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"
