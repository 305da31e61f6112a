"""Webhooks: the end of a batch, told to a URL of its user's, by https://www.standardwebhooks.com.

A POST of compact JSON with ``webhook-id`` (the same on every retry), ``webhook-timestamp`` and ``webhook-signature``.
An address is connected to only after it was checked, https only, no redirect is followed and no proxy asked: a user's
URL must not reach what is private to the workers' network.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException, HTTPSConnection
from threading import Thread, Timer
from typing import Any

from latentfarm.errors import LatentfarmError
from latentfarm.ledger import Ledger
from latentfarm.ledger.webhook_outbox import Event, WebhookOutbox
from latentfarm.settings import Settings
from latentfarm.webhooks.address_check import require_public, url_parts
from latentfarm.webhooks.signing import decode_secret, sign

#: seconds after which a failed attempt is repeated, up to a fifth more; then the event is given up
RETRY_DELAYS_S = (5, 30, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600)

#: one attempt, from asking for the address to the end of the answer
_ATTEMPT_S = 15.0
_CONNECT_S = 5.0
_ANSWER_BYTES = 64 * 1024
#: longer than any attempt, so that an event is claimed again only when its sender died
_HOLD_S = 60.0
#: events sent at once in a round
_AT_ONCE = 4
#: the longest wait that an endpoint may ask for
_RETRY_AFTER_MAX_S = 24 * 3600


@dataclass(frozen=True)
class _Answer:
    status: int
    retry_after_s: float


def deliver_due(ledger: Ledger, settings: Settings) -> int:
    """Send the events that are due, a few at once; return how many were delivered. Returns within 16 seconds.

    What goes wrong with an endpoint is recorded in the ledger, not raised.
    """
    outbox = WebhookOutbox(ledger)
    events = outbox.claim(_AT_ONCE, hold_s=_HOLD_S)
    if not events:
        return 0
    with ThreadPoolExecutor(len(events), thread_name_prefix="webhook") as pool:
        return sum(pool.map(lambda event: _deliver(outbox, event, settings), events))


def _deliver(outbox: WebhookOutbox, event: Event, settings: Settings) -> bool:
    error, wait_s, gone = "", 0.0, False
    began = time.monotonic()
    try:
        answer = _send(event, settings)
    except (LatentfarmError, OSError, HTTPException) as problem:
        error = _explain(problem, late=time.monotonic() - began >= _ATTEMPT_S)
    else:
        if 200 <= answer.status < 300:
            return outbox.sent(event)
        error, wait_s, gone = _refusal(answer.status), answer.retry_after_s, answer.status == 410
    if gone or event.attempt > len(RETRY_DELAYS_S):
        outbox.abandon(event, f"{error}; attempt {event.attempt} was the last")
    else:
        # endpoints that failed together are not asked again together
        delay_s = RETRY_DELAYS_S[event.attempt - 1] * random.uniform(1, 1.2)  # noqa: S311
        outbox.retry(event, error, delay_s=max(delay_s, wait_s))
    return False


def _explain(problem: Exception, *, late: bool) -> str:
    if late:
        # whatever a cut connection raised, its time was over
        return f"no answer within {_ATTEMPT_S:g} s"
    if isinstance(problem, HTTPException):
        # its text is whatever the endpoint has sent
        return f"the answer is no HTTP ({type(problem).__name__})"
    return str(problem) or type(problem).__name__


def _refusal(status: int) -> str:
    if 300 <= status < 400:
        return f"the answer was {status}, and redirects are not followed; give the final URL"
    return f"the answer was {status}"


def _send(event: Event, settings: Settings) -> _Answer:
    """POST the event and return the answer's status.

    Raises:
        InputError: the secret, the URL or the address it leads to cannot be used.
        OSError, HTTPException: the endpoint cannot be reached, is not who it should be or speaks no HTTP.
    """
    deadline = time.monotonic() + _ATTEMPT_S
    secret = decode_secret(settings.webhook_secret.get_secret_value())
    parts = url_parts(event.url)
    host, port = str(parts.hostname), parts.port or 443
    addresses = _resolve(host, port)
    if not settings.webhook_allow_private:
        require_public(host, addresses)
    body, webhook_id, now_s = _body(event), _webhook_id(event), event.claimed_ms // 1000
    headers = {
        "content-type": "application/json",
        "user-agent": "latentfarm",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": sign(secret, webhook_id, now_s, body),
    }
    with _connected(host, port, addresses, deadline) as connection:
        connection.request("POST", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, headers)
        with connection.getresponse() as response:
            # a connection that was cut among the headers looks like one that ends there
            if time.monotonic() >= deadline:
                raise TimeoutError
            # the status has said it; what follows is taken out of courtesy
            with suppress(OSError, HTTPException):
                response.read(_ANSWER_BYTES)
            wanted = response.headers.get("retry-after", "")
            wait_s = min(int(wanted), _RETRY_AFTER_MAX_S) if re.fullmatch("[0-9]{1,9}", wanted) else 0
            return _Answer(response.status, wait_s)


def _body(event: Event) -> bytes:
    ended = datetime.fromtimestamp(event.ended_ms / 1000, UTC)
    data: dict[str, Any] = {
        "batch": event.batch,
        "model": event.model,
        "state": event.state,
        "total": event.total,
        "done": event.done,
        "failed": event.failed,
        "cancelled": event.cancelled,
    }
    if event.errors:
        data["errors"] = event.errors
    message = {
        "type": "batch.completed" if event.state == "complete" else "batch.cancelled",
        "timestamp": ended.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": data,
    }
    return json.dumps(message, separators=(",", ":")).encode()


def _webhook_id(event: Event) -> str:
    """Name the event: the same for all its attempts, another when the batch ends once more."""
    return "msg_" + hashlib.sha256(f"{event.batch}/{event.ended_ms}/{event.retries}".encode()).hexdigest()[:32]


def _resolve(host: str, port: int) -> list[str]:
    """Return all addresses of a host. On a thread of its own, as no timeout reaches the resolver."""
    answer: Future[list[Any]] = Future()

    def ask() -> None:
        try:
            answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.set_exception(error)

    Thread(target=ask, name="webhook-dns", daemon=True).start()
    try:
        infos = answer.result(_CONNECT_S)
    except TimeoutError:
        raise TimeoutError(f"{host} was not found within {_CONNECT_S:g} s") from None
    except (OSError, UnicodeError) as error:
        raise OSError(f"{host} cannot be found: {error}") from None
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


@contextmanager
def _connected(host: str, port: int, addresses: list[str], deadline: float) -> Iterator[HTTPSConnection]:
    """Give a connection to one of exactly these addresses, proven to be the host's; it is cut at the deadline."""
    context = ssl.create_default_context()
    with _first_to_connect(addresses, port) as raw:
        # no step of the handshake or of the answer may take longer than all of them together
        raw.settimeout(_ATTEMPT_S)
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


def _first_to_connect(addresses: list[str], port: int) -> socket.socket:
    before = time.monotonic() + _CONNECT_S
    problem: OSError = TimeoutError(f"no connection within {_CONNECT_S:g} s")
    for address in addresses:
        left_s = before - time.monotonic()
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
    """End a connection under whoever waits for it. Not ``tls.shutdown``, which first drops the encryption."""
    with suppress(OSError):
        socket.socket.shutdown(tls, socket.SHUT_RDWR)
