"""Celery's connection to Redis, which survives every outage.

kombu takes an answer such as READONLY, OOM or MISCONF for a fault of the program, and Celery then ends its worker. Here
such an answer is a lost connection: the worker connects again until Redis accepts writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

import redis
from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport import redis as kombu_redis

from latentfarm.errors import UnavailableError
from latentfarm.ledger.redis_errors import translate_errors
from latentfarm.redis_address import RedisAddress, sentinels_of

#: never exists: the probe writes no bytes to it
_PROBE_KEY = "{lf}:probe"
#: Celery connects again at once after a refusal; without a pause it would do so hundreds of times a second
_PAUSE_S = 1.0
#: seconds between tries to connect; Celery's own limit is 30
_LONGEST_INTERVAL_S = 5


class DoorbellChannel(kombu_redis.Channel):  # type: ignore[misc]
    """A channel without redelivery, which writes nothing but doorbells and the binding of their queue.

    A doorbell that is lost with its worker is rung again by any other worker. Redelivery would only add writes, and
    each of them can fail in an outage.
    """

    ack_emulation = False
    do_restore = False
    # one list a queue: a Redis in cluster mode refuses a command on keys of several slots
    priority_steps = (0,)
    _one_by_one = False

    def _get_pool(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's method
        """Connect as the ledger does: kombu reads fewer URLs than redis-py, and queries Sentinels in its own way."""
        address = self.connection.client.address
        if address is None:
            return super()._get_pool(asynchronous)
        self.keyprefix_fanout: str = self.keyprefix_fanout.format(db=address.db)
        timeouts = {
            "socket_timeout": self.socket_timeout,
            "socket_connect_timeout": self.socket_connect_timeout,
            "health_check_interval": self.health_check_interval,
        }
        pool = address.pool(self._polled if asynchronous else lambda connection: connection, **timeouts)
        # kombu closes the connections to Sentinels together with the channel
        setattr(self, "_async_sentinel_manager" if asynchronous else "_sentinel_manager", sentinels_of(pool))
        return pool

    def _polled(self, connection_class: type[Any]) -> type[Any]:
        """Return a class of connections that the event loop forgets when they are closed."""
        channel = self

        class Connection(connection_class):  # type: ignore[misc]
            def disconnect(self, *arguments: Any, **options: Any) -> None:
                super().disconnect(*arguments, **options)
                if channel._registered:
                    channel._on_connection_disconnect(self)

        return Connection

    def _brpop_start(self, timeout: float | None = None) -> None:
        if not self._one_by_one or not self.active_queues:
            super()._brpop_start(timeout)
            return
        [queue] = self._queue_cycle.consume(1)
        self._queue_cycle.rotate(queue)
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self.client.connection.send_command("BRPOP", queue, timeout or self.brpop_timeout)

    def _brpop_read(self, **options: Any) -> Any:
        with _translated(self.connection, pause_s=_PAUSE_S):
            try:
                return super()._brpop_read(**options)
            except redis.exceptions.ClusterCrossSlotError:
                # a Redis in cluster mode: from now on the queues of several models are polled in turn
                self._one_by_one = True
                raise Empty from None

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        with _translated(self.connection, pause_s=_PAUSE_S):
            try:
                super()._queue_bind(exchange, routing_key, pattern, queue)
            except redis.exceptions.ClusterCrossSlotError:
                # kombu writes two sets in one transaction; these are its keys and its member
                member = self.sep.join([routing_key or "", pattern or "", queue or ""])
                for prefix in (self.keyprefix_queue, self.keyprefix_binding_permanent):
                    self.client.sadd(prefix % (exchange,), member)

    def _size(self, *arguments: Any, **options: Any) -> Any:
        with _translated(self.connection, pause_s=_PAUSE_S):
            return super()._size(*arguments, **options)

    def _receive(self, *arguments: Any, **options: Any) -> Any:
        # what remote control subscribes to
        with _translated(self.connection, pause_s=_PAUSE_S):
            return super()._receive(*arguments, **options)

    def require_writable(self) -> None:
        """Write to Redis, so that it refuses now if it refuses writes.

        Appending nothing to a key that does not exist is a write to Redis, but leaves no key behind.
        """
        self.client.setrange(_PROBE_KEY, 0, b"")


class DoorbellTransport(kombu_redis.Transport):  # type: ignore[misc]
    """kombu's transport, for which a refusal of Redis is a lost connection."""

    Channel = DoorbellChannel
    connection_errors = (*kombu_redis.Transport.connection_errors, redis.ResponseError, UnavailableError)

    def create_channel(self, connection: Any) -> DoorbellChannel:
        """Open a channel if Redis accepts writes; Celery tries again while it does not."""
        with _translated(self):
            channel: DoorbellChannel = super().create_channel(connection)
            try:
                channel.require_writable()
            except Exception:
                channel.close()
                raise
        return channel


class DoorbellConnection(Connection):  # type: ignore[misc]
    """A connection over ``DoorbellTransport`` for a URL of any scheme."""

    #: where to connect; None: as kombu reads the broker's URL
    address: RedisAddress | None = None

    def as_uri(self, *arguments: Any, **options: Any) -> str:
        """Return the farm's URL without its password, for logs; in kombu's form for who needs the password."""
        if self.address is None or options.get("include_password"):
            return str(super().as_uri(*arguments, **options))
        return self.address.where

    def get_transport_cls(self) -> type[DoorbellTransport]:
        """Return our transport; a name in the URL or the settings would not be used for unix sockets."""
        return DoorbellTransport

    def ensure_connection(self, *arguments: Any, **options: Any) -> Any:
        """Connect, trying again for as long as it takes."""
        options.setdefault("interval_start", 1)
        options.setdefault("interval_step", 1)
        options.setdefault("interval_max", _LONGEST_INTERVAL_S)
        return super().ensure_connection(*arguments, **options)


def make_amqp(address: RedisAddress | None) -> type[AMQP]:
    """Return Celery's messaging over ``DoorbellConnection`` to an address."""
    connection = type("DoorbellConnection", (DoorbellConnection,), {"address": address})
    return type("DoorbellAMQP", (AMQP,), {"Connection": connection})


@contextmanager
def _translated(transport: DoorbellTransport, *, pause_s: float = 0) -> Iterator[None]:
    """Raise ``UnavailableError``, whose text names the cure, after a pause if Redis answers at all."""
    try:
        with translate_errors(transport.client.as_uri()):
            yield
    except UnavailableError as error:
        if error.cause not in {"connection", "timeout"}:
            time.sleep(pause_s)
        raise
