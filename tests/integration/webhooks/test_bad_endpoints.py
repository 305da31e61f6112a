"""Endpoints that are slow, mute, not there, endless or no HTTP: each is cut off, and none delays another."""

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
from latentfarm.webhooks import deliver
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
def test_a_slow_endpoint_is_cut_off_when_its_time_is_over(
    ledger: Ledger,
    worker: Settings,
    endpoint: Endpoint,
    slow: Callable[[Endpoint], Reply],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deliver, "_ATTEMPT_S", 1.0)
    endpoint.replies = [slow(endpoint)]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    began = time.monotonic()
    assert deliver_due(ledger, worker) == 0
    assert time.monotonic() - began < 2
    assert facts(ledger) == ("due", 1, "no answer within 1 s")


def test_a_listener_that_never_speaks_tls_is_cut_off_too(
    ledger: Ledger, worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "_ATTEMPT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ended(ledger, f"https://localhost:{mute.getsockname()[1]}/")
        deliver_due(ledger, worker)
    assert facts(ledger) == ("due", 1, "no answer within 0.5 s")


def test_nobody_listening_is_a_failed_attempt(ledger: Ledger, worker: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended(ledger, f"https://localhost:{port}/")
    deliver_due(ledger, worker)
    assert f"port {port}: Connection refused" in facts(ledger)[2]


def test_a_name_that_does_not_exist_is_a_failed_attempt(ledger: Ledger, worker: Settings) -> None:
    ended(ledger, "https://nowhere.invalid/")
    deliver_due(ledger, worker)
    state, attempts, error = facts(ledger)
    assert (state, attempts) == ("due", 1)
    assert error.startswith("nowhere.invalid ")


def test_an_endless_answer_is_read_up_to_a_bound(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
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
    # what lies in the sockets' buffers on top
    assert written < 32 * 1024 * 1024


def test_an_answer_that_is_no_http_is_a_failed_attempt(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SSH-2.0-x\r\n")

    endpoint.replies = [reply]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 0
    assert facts(ledger) == ("due", 1, "the answer is no HTTP (BadStatusLine)")


def test_a_dead_endpoint_does_not_delay_the_others(
    ledger: Ledger, worker: Settings, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "_ATTEMPT_S", 2.0)
    arrived = threading.Event()
    for name in "abc":
        ended(ledger, f"https://localhost:{endpoint.port}/{name}", batch=name)

    def wait_for_the_others(_: BaseHTTPRequestHandler) -> None:
        if len(endpoint.received) == 3:
            arrived.set()
        endpoint.stopped.wait(30)

    endpoint.replies = [wait_for_the_others] * 3
    deliver_due(ledger, worker)
    assert arrived.is_set(), "each was sent while the others hung"
