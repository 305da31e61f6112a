"""Runs an application on a socket until a stop is requested."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from latentfarm.errors import InputError, UnavailableError
from latentfarm.monitoring.listen_address import parse_address
from latentfarm.server.http.connection import limited
from latentfarm.server.http.frame import MAX_HEADER_BYTES

#: seconds that an idle connection is kept; longer than the 60 of common proxies, which send the next request into it
_KEEP_ALIVE_S = 75
_BACKLOG = 1_024
#: files besides the connections of clients: those to Redis and the bucket, and spooled uploads
_OTHER_FILES = 300
#: of the time to end, seconds for the answers of requests that are cut off
_ANSWER_S = 1.0


def listen(address: str) -> socket.socket:
    """Return a socket that listens at ``HOST:PORT``.

    Raises:
        InputError: the address has another form.
        UnavailableError: it is in use, or not one of this machine.
    """
    host, port = parse_address(address, name="the address")
    try:
        # an empty host is every interface
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)  # noqa: S104
        family, kind, protocol, _, place = min(found, key=lambda each: each[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        cure = "name an address of this machine, and a port that is free"
        raise UnavailableError(f"cannot serve {address}: {reason}; {cure}") from None
    return listener


def allow_connections(count: int) -> None:
    """Raise the limit of open files of this process, so that ``count`` connections fit.

    Raises:
        InputError: the system does not allow so many.
    """
    wanted = count + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):
        raise InputError(
            f"LATENTFARM_SERVER_MAX_CONNECTIONS is {count}, and this process may open {hard} files at most; lower it, "
            f"or raise the limit (ulimit -n {wanted})"
        ) from None


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket, of this machine if it listens on every interface."""
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer(uvicorn.Server):
    """Serves an application until SIGTERM, SIGINT or SIGHUP, or ``should_exit``.

    Then it takes no more connections. Streams without an end of their own end. Other requests may finish for
    ``shutdown_timeout_s`` seconds; the rest is answered 503, and the images that they wait for are cancelled. A second
    signal ends it at once.
    """

    def __init__(
        self, app: Starlette, *, max_connections: int, shutdown_timeout_s: float, header_timeout_s: float = 15.0
    ) -> None:
        self._application = app
        self._shutdown_timeout_s = shutdown_timeout_s
        config = uvicorn.Config(
            app,
            http=limited(max_connections, header_timeout_s),
            ws="none",
            lifespan="on",
            # the frame of requests writes the access log
            log_config=None,
            access_log=False,
            # the addresses of clients decide nothing, and a header could forge them
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(shutdown_timeout_s) + 2,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        super().__init__(config)
        # at INFO it repeats what the command prints
        logging.getLogger("uvicorn").setLevel(logging.WARNING)

    def run_on(self, listener: socket.socket) -> None:
        """Serve until a stop is requested."""
        self.run(sockets=[listener])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the server."""
        state = self._application.state
        state.context.stopping.set()
        cutter = asyncio.create_task(self._cut_off())
        try:
            await super().shutdown(sockets)
        finally:
            cutter.cancel()

    async def _cut_off(self) -> None:
        await asyncio.sleep(max(0.0, self._shutdown_timeout_s - _ANSWER_S))
        for request in list(self._application.state.running):
            request.cancelled.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle a signal."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals meanwhile. uvicorn would raise them again after the end, as an error."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
