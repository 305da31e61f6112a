"""Server-sent events, clients that hang up, and the end of a server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import anyio
import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tests.conftest import until
from tests.support.http_server import RunningServer

from latentfarm.farm import Farm
from latentfarm.server import probes
from latentfarm.server.context import context_of
from latentfarm.server.http import connection, sse
from latentfarm.server.http.disconnect import cancel_on_disconnect
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.sse import ServerEvent, event_stream
from latentfarm.server.settings import ServerSettings

pytestmark = pytest.mark.integration

#: what ended, in order
ended: list[str] = []


async def _ticks(name: str, count: int) -> AsyncIterator[ServerEvent]:
    try:
        yield ServerEvent("first", "tick", "1-0")
        for _ in range(count):
            await anyio.sleep(0.01)
            yield ServerEvent("a\nb")
        await anyio.sleep(60 if count == 0 else 0)
        if name == "broken":
            raise KeyError(name)
    finally:
        ended.append(name)


async def ticks(request: Request) -> Response:
    name = request.path_params["name"]
    return event_stream(_ticks(name, 0 if name.startswith("endless") else 2), lasting=name == "endless-lasting")


async def _flood() -> AsyncIterator[ServerEvent]:
    try:
        while True:
            yield ServerEvent("x" * 100_000)
    finally:
        ended.append("flood")


async def flood(_request: Request) -> Response:
    return event_stream(_flood())


async def wait(request: Request) -> Response:
    """Answer after some seconds; what the client does not wait for is cancelled."""
    seconds = float(request.path_params["seconds"])
    try:
        async with cancel_on_disconnect(request):
            await anyio.sleep(seconds)
    except BaseException:
        ended.append("wait cancelled")
        raise
    return JSONResponse({"waited": seconds})


async def follow(request: Request) -> Response:
    context = context_of(request)

    async def events() -> AsyncIterator[ServerEvent]:
        async with context.hub.subscribe(lambda item: getattr(item, "batch", "") == "mine") as items:
            yield ServerEvent("ready")
            async for item in items:
                yield ServerEvent(json.dumps([item.event, item.batch]), id=item.id)  # type: ignore[union-attr]

    return event_stream(events(), lasting=True)


OPERATIONS = (
    *probes.OPERATIONS,
    Operation("GET", "/ticks/{name}", ticks, Scope.NONE, "Send events"),
    Operation("GET", "/flood", flood, Scope.NONE, "Send events without end"),
    Operation("GET", "/wait/{seconds}", wait, Scope.NONE, "Wait"),
    Operation("GET", "/follow", follow, Scope.NONE, "Follow the farm"),
)


@pytest.fixture
def streaming(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.05)
    ended.clear()
    settings = ServerSettings(address="127.0.0.1:0", shutdown_timeout_s=2)
    with RunningServer(farm, settings, operations=OPERATIONS) as server:
        yield server


def test_a_stream_is_sent_in_the_form_of_the_standard_and_is_closed_however_it_ends(streaming: RunningServer) -> None:
    whole = streaming.client.get("/ticks/whole")
    assert whole.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert whole.headers["cache-control"] == "no-store"
    events = [event for event in whole.text.split("\n\n") if not event.startswith(":")]
    assert events == ["id: 1-0\nevent: tick\ndata: first", "data: a\ndata: b", "data: a\ndata: b", ""]
    with pytest.raises(httpx2.RemoteProtocolError):
        streaming.client.get("/ticks/broken")
    assert ended == ["whole", "broken"]
    assert streaming.client.head("/ticks/head").status_code == 200
    # the client hangs up while nothing is sent but comments
    with streaming.client.stream("GET", "/ticks/endless") as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": still here"
    until(lambda: ended[2:] == ["endless"], timeout_s=10)
    until(lambda: not streaming.app.state.running, timeout_s=10)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel cannot cut such a client")
def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(
    streaming: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_UNREAD_MS", 500)
    with socket.create_connection(("127.0.0.1", streaming.port)) as client:
        client.sendall(b"GET /flood HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        until(lambda: len(streaming.app.state.running) == 1, timeout_s=10)
        until(lambda: ended == ["flood"], timeout_s=20)


def test_what_a_client_does_not_wait_for_is_cancelled(streaming: RunningServer) -> None:
    assert streaming.client.get("/wait/0.01").json() == {"waited": 0.01}
    with socket.create_connection(("127.0.0.1", streaming.port)) as client:
        client.sendall(b"GET /wait/60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        until(lambda: len(streaming.app.state.running) == 1, timeout_s=10)
    until(lambda: ended == ["wait cancelled"], timeout_s=10)
    text = streaming.client.get("/metrics").text
    assert 'operation="/wait/{seconds}",status="499"} 1.0' in text


def test_clients_follow_the_events_of_the_farm(streaming: RunningServer, farm: Farm) -> None:
    with streaming.client.stream("GET", "/follow") as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        assert next(lines) == "data: ready"
        for name in ("other", "mine"):
            farm.ledger.create_batch(name, digest="d", model="mini")
        assert next(lines) == 'data: ["created", "mine"]'
        farm.ledger.cancel("mine")
        assert next(lines) == 'data: ["cancelled", "mine"]'


def test_at_its_end_a_server_finishes_requests_within_its_time_and_refuses_the_rest(streaming: RunningServer) -> None:
    statuses: dict[str, httpx2.Response] = {}

    def get(path: str) -> None:
        statuses[path] = httpx2.get(f"{streaming.url}{path}", timeout=20)

    paths = ("/wait/0.6", "/wait/60", "/ticks/endless-lasting")
    threads = [threading.Thread(target=get, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    until(lambda: len(streaming.app.state.running) == 3, timeout_s=10)
    streaming.stop()
    for thread in threads:
        thread.join(10)
    assert statuses["/wait/0.6"].json() == {"waited": 0.6}
    refused = statuses["/wait/60"]
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_ending")
    assert refused.headers["retry-after"] == "1"
    # a stream without an end of its own ended at once and whole
    assert statuses["/ticks/endless-lasting"].text.startswith("id: 1-0\n")
    assert ended == ["endless-lasting", "wait cancelled"]
    with pytest.raises(httpx2.ConnectError):
        streaming.client.get("/livez")
