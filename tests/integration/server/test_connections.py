"""Slow, idle, many and huge: clients that would hold a server cannot."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tests.conftest import until
from tests.support.http_server import RunningServer

from latentfarm.farm import Farm
from latentfarm.server import probes
from latentfarm.server.http import connection, frame
from latentfarm.server.http.body import read_json
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.settings import ServerSettings

pytestmark = pytest.mark.integration

BODY = b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
GIGABYTE = 1_000_000_000


async def echo(request: Request) -> Response:
    return JSONResponse(await read_json(request))


ECHO = Operation("POST", "/echo", echo, Scope.NONE, "Return the body")


@pytest.fixture(scope="module")
def small(connected: Farm) -> Iterator[RunningServer]:
    """A server with few connections and short time limits."""
    settings = ServerSettings(address="127.0.0.1:0", max_connections=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "_BODY_PAUSE_S", 0.3)
        patch.setattr(frame, "_BODY_GRACE_S", 0.5)
        patch.setattr(connection, "_LINGER_S", 0.3)
        operations = (*probes.OPERATIONS, ECHO)
        with RunningServer(connected, settings, operations=operations, header_timeout_s=0.3) as server:
            yield server


def connect(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def answer_of(client: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    received = b""
    try:
        while chunk := client.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def read_until(client: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        chunk = client.recv(65536)
        assert chunk, received
        received += chunk
    return received


def drip(client: socket.socket, parts: Iterator[bytes], pause_s: float) -> None:
    """Send one part after the other until the server closes the connection."""
    try:
        for part in parts:
            client.sendall(part)
            time.sleep(pause_s)
    except OSError:
        pass


def test_a_header_that_comes_slowly_is_cut_off(small: RunningServer) -> None:
    with connect(small) as silent, connect(small) as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\n")
        dripping = threading.Thread(target=drip, args=(slow, iter([b"X: y\r\n"] * 50), 0.05))
        dripping.start()
        began = time.monotonic()
        assert (answer_of(slow), answer_of(silent)) == (b"", b"")
        assert time.monotonic() - began < 3
        dripping.join()
    # also the second header of a connection
    with connect(small) as reused:
        reused.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert read_until(reused, b"ok\n").startswith(b"HTTP/1.1 200 ")
        reused.sendall(b"GET /livez HTTP/1.1\r\n")
        assert answer_of(reused) == b""


def test_a_body_that_comes_slowly_is_answered_408(small: RunningServer) -> None:
    with connect(small) as silent, connect(small) as slow:
        silent.sendall(BODY + b"Content-Length: 100\r\n\r\n{")
        slow.sendall(BODY + b"Content-Length: 100\r\n\r\n")
        dripping = threading.Thread(target=drip, args=(slow, iter([b" "] * 90), 0.05))
        dripping.start()
        for client in (slow, silent):
            answer = answer_of(client)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b'"code":"body_too_slow"' in answer
        dripping.join()


def test_a_gigabyte_is_refused_by_its_length_and_while_it_is_read(small: RunningServer) -> None:
    with connect(small) as client:
        client.sendall(BODY + b"Content-Length: %d\r\n\r\n{" % GIGABYTE)
        assert answer_of(client).startswith(b"HTTP/1.1 413 ")

    def chunks() -> Iterator[bytes]:
        yield BODY + b"Transfer-Encoding: chunked\r\n\r\n"
        yield from [b"100000\r\n" + b" " * 0x100000 + b"\r\n"] * 1000

    for begin in (None, BODY + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"):
        with connect(small) as client:
            sending = threading.Thread(target=drip, args=(client, iter([begin]) if begin else chunks(), 0))
            sending.start()
            answer = answer_of(client)
            assert answer.startswith(b"HTTP/1.1 400 " if begin else b"HTTP/1.1 413 "), answer
            sending.join()


def test_idle_connections_do_not_stop_others(small: RunningServer) -> None:
    idle = [connect(small) for _ in range(30)]
    try:
        assert small.client.get("/livez").text == "ok\n"
        connections: Any = small.server.server_state.connections
        until(lambda: len(connections) <= 8, timeout_s=10)
        # the oldest ones went first
        assert answer_of(idle[0]) == b""
    finally:
        for client in idle:
            client.close()


def test_too_many_requests_at_once_are_answered_503_and_probes_still(small: RunningServer) -> None:
    clients = [connect(small) for _ in range(8)]
    try:
        for client in clients:
            client.sendall(BODY + b"Content-Length: 100\r\n\r\n")
        until(lambda: len(small.app.state.running) == 8, timeout_s=10)
        refused = small.client.post("/echo", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_full")
        assert refused.headers["retry-after"] == "1"
        assert small.client.get("/livez").status_code == 200
    finally:
        for client in clients:
            client.close()
    until(lambda: not small.app.state.running, timeout_s=10)
    assert small.client.post("/echo", json={"a": 1}).json() == {"a": 1}
