"""Connect to the host of a URL that a user chose.

The host's addresses are resolved once and checked, and only they are connected to. Only https is spoken, and proxies
are not used.

This is not httpx: its timeouts bound each read, so an endpoint that sends one byte a second would hold a caller for
hours. Bounding the attempt takes a network backend of one's own, which is as long as this module.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from http.client import HTTPSConnection
from threading import Thread, Timer
from typing import Any
from urllib.parse import SplitResult

from latentfarm.https.url_check import require_public

_CONNECT_TIMEOUT_S = 5.0


@contextmanager
def connect(parts: SplitResult, *, deadline: float, allow_private: bool, cure: str) -> Iterator[HTTPSConnection]:
    """Connect to the host of a URL and verify its certificate. The connection is cut at the deadline.

    Args:
        parts: a URL, as ``parse_url`` returns it.
        deadline: a time of ``time.monotonic``.
        allow_private: connect to addresses that are not public, too.
        cure: what allows them, for the error.

    Raises:
        InputError: the host has an address that is not public.
        OSError, HTTPException: the host cannot be reached, or has no valid certificate.
    """
    host, port = str(parts.hostname), parts.port or 443
    addresses = _resolve(host, port)
    if not allow_private:
        require_public(host, addresses, cure=cure)
    context = ssl.create_default_context()
    with _connect_any(addresses, port) as raw:
        # the timer bounds the attempt; this bounds one operation, if the timer's thread is late
        raw.settimeout(max(0.1, deadline - time.monotonic()))
        with context.wrap_socket(raw, server_hostname=host.rstrip("."), do_handshake_on_connect=False) as tls:
            timer = Timer(max(0, deadline - time.monotonic()), _cut, [tls])
            timer.daemon = True
            timer.start()
            try:
                tls.do_handshake()
                connection = HTTPSConnection(host, port, context=context)
                connection.sock = tls
                yield connection
            finally:
                timer.cancel()


def target_of(parts: SplitResult) -> str:
    """Return the path and query of a URL, as a request has them."""
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _resolve(host: str, port: int) -> list[str]:
    """Return all addresses of a host. On its own thread, because the resolver has no timeout."""
    answer: Future[list[Any]] = Future()

    def query() -> None:
        try:
            answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.set_exception(error)

    Thread(target=query, name="dns", daemon=True).start()
    try:
        infos = answer.result(_CONNECT_TIMEOUT_S)
    except TimeoutError:
        raise TimeoutError(f"{host} was not found within {_CONNECT_TIMEOUT_S:g} s") from None
    except (OSError, UnicodeError) as error:
        raise OSError(f"{host} cannot be found: {error}") from None
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def _connect_any(addresses: list[str], port: int) -> socket.socket:
    deadline = time.monotonic() + _CONNECT_TIMEOUT_S
    problem: OSError = TimeoutError(f"no connection within {_CONNECT_TIMEOUT_S:g} s")
    for address in addresses:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        try:
            return socket.create_connection((address, port), timeout=left_s)
        except TimeoutError:
            break
        except OSError as error:
            problem = OSError(f"no connection to {address} port {port}: {error.strerror}")
    raise problem


def _cut(tls: ssl.SSLSocket) -> None:
    """End a connection while another thread reads from it. ``tls.shutdown`` would first drop the encryption."""
    with suppress(OSError):
        socket.socket.shutdown(tls, socket.SHUT_RDWR)
