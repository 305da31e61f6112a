"""Endpoints that are slow, silent, unreachable, endless or not HTTP: each attempt ends, and none delays another."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest
from tests.support.endpoints import Endpoint, Reply, ended, facts, status

from latentfarm.ledger import Ledger
from latentfarm.settings import Settings
from latentfarm.webhooks.deliver import deliver_due

pytestmark = pytest.mark.integration


def _silence(endpoint: Endpoint) -> Reply:
    def reply(_: BaseHTTPRequestHandler) -> None:
        endpoint.stopped.wait(30)

    return reply


def _drip(endpoint: Endpoint) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
        while not endpoint.stopped.wait(0.05):
            handler.wfile.write(b"a")

    return reply


@pytest.mark.parametrize("slow", [_silence, _drip])
def test_an_attempt_at_a_slow_endpoint_ends_at_its_timeout(
    ledger: Ledger,
    worker: Settings,
    endpoint: Endpoint,
    slow: Callable[[Endpoint], Reply],
) -> None:
    endpoint.replies = [slow(endpoint)]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    began = time.monotonic()
    assert deliver_due(ledger, worker, attempt_timeout_s=1.0) == 0
    assert time.monotonic() - began < 2
    assert facts(ledger) == ("due", 1, "no answer within 1 s")


def test_an_attempt_at_a_listener_without_tls_ends_at_its_timeout(ledger: Ledger, worker: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ended(ledger, f"https://localhost:{silent.getsockname()[1]}/")
        deliver_due(ledger, worker, attempt_timeout_s=0.5)
    assert facts(ledger) == ("due", 1, "no answer within 0.5 s")


def test_a_refused_connection_is_a_failed_attempt(ledger: Ledger, worker: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended(ledger, f"https://localhost:{port}/")
    deliver_due(ledger, worker)
    assert f"port {port}: Connection refused" in facts(ledger)[2]


def test_an_unknown_host_is_a_failed_attempt(ledger: Ledger, worker: Settings) -> None:
    ended(ledger, "https://nowhere.invalid/")
    deliver_due(ledger, worker)
    state, attempts, error = facts(ledger)
    assert (state, attempts) == ("due", 1)
    assert error.startswith("nowhere.invalid ")


def test_an_endless_answer_is_read_up_to_a_limit(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    written = 0

    def reply(handler: BaseHTTPRequestHandler) -> None:
        nonlocal written
        status(200)(handler)
        while not endpoint.stopped.is_set():
            written += handler.wfile.write(b"x" * 4096)

    endpoint.replies = [reply]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 1
    assert facts(ledger)[0] == "sent"
    # the limit, plus the sockets' buffers
    assert written < 32 * 1024 * 1024


def test_an_answer_that_is_not_http_is_a_failed_attempt(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SSH-2.0-x\r\n")

    endpoint.replies = [reply]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 0
    assert facts(ledger) == ("due", 1, "the answer is not HTTP (BadStatusLine)")


def test_a_dead_endpoint_does_not_delay_the_others(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    arrived = threading.Event()
    for name in "abc":
        ended(ledger, f"https://localhost:{endpoint.port}/{name}", batch=name)

    def wait_for_the_others(_: BaseHTTPRequestHandler) -> None:
        if len(endpoint.received) == 3:
            arrived.set()
        endpoint.stopped.wait(30)

    endpoint.replies = [wait_for_the_others] * 3
    deliver_due(ledger, worker, attempt_timeout_s=2.0)
    assert arrived.is_set(), "each was sent while the others hung"
