"""POST to a URL that a user chose, without giving it access to the workers' private network.

The host's addresses are resolved once and checked, and only they are connected to. Only https is spoken, redirects are
not followed, and proxies are not used.

This is not httpx: its timeouts bound each read, so an endpoint that sends one byte a second would hold a sender for
hours. Bounding the attempt takes a network backend of one's own, which is as long as this module.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPSConnection
from threading import Thread, Timer
from typing import Any

from latentfarm.webhooks.address_check import parse_url, require_public

_CONNECT_TIMEOUT_S = 5.0
#: bytes of an answer that are read
_MAX_BODY_BYTES = 64 * 1024
#: the longest delay that an endpoint may request
_MAX_RETRY_AFTER_S = 24 * 3600


@dataclass(frozen=True)
class Answer:
    """An answer's status, and the seconds of its ``Retry-After`` header, 0 without one."""

    status: int
    retry_after_s: float


def post(url: str, body: bytes, headers: dict[str, str], *, allow_private: bool, timeout_s: float) -> Answer:
    """POST a body and return the answer. ``timeout_s`` bounds the attempt, from the DNS query to the answer's end.

    Raises:
        InputError: the URL is invalid, or its host has an address that is not public.
        OSError, HTTPException: the endpoint cannot be reached, has no valid certificate or does not speak HTTP.
    """
    deadline = time.monotonic() + timeout_s
    parts = parse_url(url)
    host, port = str(parts.hostname), parts.port or 443
    addresses = _resolve(host, port)
    if not allow_private:
        require_public(host, addresses)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with _connect(host, port, addresses, deadline) as connection:
        connection.request("POST", target, body, headers)
        with connection.getresponse() as response:
            # a connection that is cut within the headers reads like an answer that ends there
            if time.monotonic() >= deadline:
                raise TimeoutError
            # the status decides; the body is read as a courtesy to the endpoint
            with suppress(OSError, HTTPException):
                response.read(_MAX_BODY_BYTES)
            return Answer(response.status, _retry_after_s(response.headers.get("retry-after", "")))


def _retry_after_s(header: str) -> int:
    return min(int(header), _MAX_RETRY_AFTER_S) if re.fullmatch("[0-9]{1,9}", header) else 0


def _resolve(host: str, port: int) -> list[str]:
    """Return all addresses of a host. On its own thread, because the resolver has no timeout."""
    answer: Future[list[Any]] = Future()

    def query() -> None:
        try:
            answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.set_exception(error)

    Thread(target=query, name="webhook-dns", daemon=True).start()
    try:
        infos = answer.result(_CONNECT_TIMEOUT_S)
    except TimeoutError:
        raise TimeoutError(f"{host} was not found within {_CONNECT_TIMEOUT_S:g} s") from None
    except (OSError, UnicodeError) as error:
        raise OSError(f"{host} cannot be found: {error}") from None
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


@contextmanager
def _connect(host: str, port: int, addresses: list[str], deadline: float) -> Iterator[HTTPSConnection]:
    """Connect to one of the addresses and verify the host's certificate. The connection is cut at the deadline."""
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
