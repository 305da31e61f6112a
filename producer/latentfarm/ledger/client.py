"""One Redis client and the ledger's scripts: the base of every part of the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Self

import redis

from latentfarm.errors import SchemaError, UnavailableError
from latentfarm.ledger.constants import OLD_SCHEMA_KEY, SCHEMA, SCHEMA_KEY
from latentfarm.ledger.live_reports import CHANNEL, LiveReport, LiveReports, report_text
from latentfarm.ledger.lua_scripts import Script, Scripts
from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import outage_cause, translate_errors
from latentfarm.ledger.slot_reports import SlotReports, SlotsReport, slots_message
from latentfarm.ledger.worker_signals import WorkerSignals, watched_channels
from latentfarm.redis_address import RedisAddress

#: answers of a server that is a replica now
_REPLICA_CAUSES = frozenset({"READONLY", "MASTERDOWN"})


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
        """Return a ledger on a URL of ``RedisAddress``. Nothing is sent yet.

        Raises:
            InputError: the URL is malformed.
        """
        address = RedisAddress.parse(url)
        timeouts = {"socket_timeout": 10, "socket_connect_timeout": 5, "health_check_interval": 10}
        return cls(redis.Redis(connection_pool=address.pool(_outage_aware, **timeouts)), where=address.where)

    def run(self, script: Script, *args: Any) -> Any:
        """Run a script, with the errors of this class.

        A replica runs no part of it. Then it runs once more on a new connection: after a failover the name in the URL
        leads to another server, which open connections never find.
        """
        try:
            with translate_errors(self.where):
                return script(keys=[SCHEMA_KEY], args=list(args))
        except UnavailableError as error:
            if error.cause not in _REPLICA_CAUSES:
                raise
        with translate_errors(self.where):
            self.redis.connection_pool.disconnect(inuse_connections=False)
            return script(keys=[SCHEMA_KEY], args=list(args))

    def ping(self) -> str:
        """Return the version of the Redis server."""
        with translate_errors(self.where):
            return str(self.redis.info("server")["redis_version"])

    def check_schema(self, schema: bytes | None) -> None:
        """Check the value of ``SCHEMA_KEY`` as read together with batches, as the scripts do.

        Raises:
            SchemaError: another version wrote the ledger.
        """
        if schema is not None and decode(schema) == SCHEMA:
            return
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=False)
            pipe.get(SCHEMA_KEY)
            pipe.get(OLD_SCHEMA_KEY)
            now, old = pipe.execute()
        # both come and go with the batches
        found = now or old
        if found is not None and decode(found) != SCHEMA:
            raise SchemaError(self.where, theirs=decode(found), ours=SCHEMA)

    def now_us(self) -> int:
        """Return Redis ``TIME`` in microseconds. The epoch of every lease so far is lower."""
        with translate_errors(self.where):
            seconds, micros = self.redis.time()
        return int(seconds) * 1_000_000 + int(micros)

    def now_s(self) -> int:
        """Return Redis ``TIME`` in seconds since 1970: the clocks of servers may differ."""
        return self.now_us() // 1_000_000

    def memory_bytes(self) -> int:
        """Return the memory in use by the Redis server."""
        with translate_errors(self.where):
            return int(self.redis.info("memory")["used_memory"])

    def signals(self, *, worker: str = "") -> WorkerSignals:
        """Subscribe to what workers are to know at once, from now on. ``worker``: also that this one is watched."""
        return WorkerSignals(self.redis, self.where, worker=worker)

    def watch_workers(self, workers: Iterable[str]) -> None:
        """Signal to workers that they are watched for the next ``WATCHED_S`` seconds, in one round trip."""
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=False)
            for channel in watched_channels(workers):
                pipe.publish(channel, b"")
            pipe.execute()

    def slot_reports(self, workers: Iterable[str]) -> SlotReports:
        """Subscribe to the slots of workers, from now on. They are reported while the workers are watched."""
        return SlotReports(self.redis, self.where, workers)

    def publish_slots(self, report: SlotsReport) -> None:
        """Send the slots of a worker to all subscribers. Nothing is stored."""
        with translate_errors(self.where):
            self.redis.publish(*slots_message(report))

    def live_reports(self) -> LiveReports:
        """Subscribe to the live reports of all workers, from now on."""
        return LiveReports(self.redis, self.where)

    def publish_live(self, reports: Sequence[LiveReport]) -> None:
        """Send live reports to all subscribers, in one round trip. Nothing is stored."""
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=False)
            for report in reports:
                pipe.publish(CHANNEL, report_text(report))
            pipe.execute()


def _outage_aware(connection_class: type[Any]) -> type[Any]:
    """Return a class of connections that know what a server answers in an outage."""

    class Connection(connection_class):  # type: ignore[misc]
        leads_to_replica = False

        def read_response(self, *arguments: Any, **options: Any) -> Any:
            try:
                return super().read_response(*arguments, **options)
            except redis.ResponseError as error:
                if outage_cause(error) in _REPLICA_CAUSES:
                    # the other answers of a pipeline are still to be read
                    self.leads_to_replica = True
                raise

        def send_packed_command(self, *arguments: Any, **options: Any) -> None:
            if self.leads_to_replica:
                self.leads_to_replica = False
                self.disconnect()
            super().send_packed_command(*arguments, **options)

        def check_health(self) -> None:
            # a server that cannot save refuses PING, too, but it can be read
            with suppress(redis.ResponseError):
                super().check_health()

    return Connection
