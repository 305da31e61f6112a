"""One connection of a client, with the time limits that uvicorn's own class lacks."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: seconds until the whole header of a request must be there, from the first connection or the first byte of the header
HEADER_TIMEOUT_S = 15.0
#: seconds in which the rest of an unread body is discarded: a client that is cut while it sends may not
#: see the answer
_LINGER_S = 5.0
#: milliseconds until a client that takes no bytes is cut, also by the kernel
_UNREAD_MS = 60_000


class TimedConnection(H11Protocol):
    """Closes connections whose header comes too slowly, and the longest idle one if there are too many.

    ``max_connections`` is set on a subclass by ``limited``.
    """

    max_connections = 1_000
    header_timeout_s = HEADER_TIMEOUT_S

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        #: when the connection began to be idle
        self.idle_since = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a header."""
        super().connection_made(transport)
        _limit_unread(transport)
        self._wait(self.header_timeout_s)
        if len(self.connections) > self.max_connections:
            self._close_longest_idle()

    def _close_longest_idle(self) -> None:
        others = (cast("TimedConnection", each) for each in self.connections if each is not self)
        idle = [each for each in others if not each.busy and not each.transport.is_closing()]
        if idle:
            min(idle, key=lambda each: each.idle_since).transport.close()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Pass bytes on, and wait for the rest of a header."""
        super().data_received(data)
        if self.busy:
            self._stop_waiting()
        elif self._deadline is None:
            self._wait(self.header_timeout_s)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: any client may send the header, and it is answered without an upgrade, as HTTP allows."""

    def on_response_complete(self) -> None:
        """Begin to be idle, or to discard the rest of the body."""
        self.idle_since = self.loop.time()
        super().on_response_complete()
        if not self.busy and self.conn.their_state is h11.SEND_BODY:
            self._wait(_LINGER_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(seconds, self._close_late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_late(self) -> None:
        self._deadline = None
        if not self.busy and not self.transport.is_closing():
            self.transport.close()


def _limit_unread(transport: asyncio.Transport) -> None:
    """Let the kernel cut a client that takes nothing of its answer."""
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if connection is not None and option is not None and connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, option, _UNREAD_MS)


def limited(max_connections: int, header_timeout_s: float = HEADER_TIMEOUT_S) -> type[TimedConnection]:
    """Return the class of connections of a server that keeps at most ``max_connections``."""
    limits = {"max_connections": max_connections, "header_timeout_s": header_timeout_s}
    return type("LimitedConnection", (TimedConnection,), limits)
