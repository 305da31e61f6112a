"""One server and one worker for the tests of a module; the farm is emptied for each test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from botocore.httpsession import URLLib3Session
from redis.connection import ConnectionPool
from tests.support.http_server import RunningServer, RunningWorker

from latentfarm.farm import Farm
from latentfarm.server.app import OPERATIONS
from latentfarm.server.http.operation import Operation
from latentfarm.server.settings import ServerSettings

Serving = Callable[..., RunningServer]


# not of the session: tests of other folders have loops of their own
@pytest.fixture(scope="module", autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """Refuse calls of Redis and the bucket on the thread of an event loop: they would stop all clients of a server."""
    targets: tuple[tuple[Any, str], ...] = ((ConnectionPool, "get_connection"), (URLLib3Session, "send"))
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in targets:
            patch.setattr(owner, name, _off_the_loop(getattr(owner, name)))
        yield


def _off_the_loop(call: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*arguments: Any, **options: Any) -> Any:
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            if threading.current_thread() is threading.main_thread():
                return call(
                    *arguments, **options
                )  # the test's: the server has a thread, and Playwright a loop on this one
            pytest.fail("a blocking call on the thread of an event loop")
        return call(*arguments, **options)

    return checked


# not of the session: it would look after the farm of the tests of other folders too
@pytest.fixture(scope="module")
def shared_server(connected: Farm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("thumbnails")
    with RunningServer(connected, ServerSettings(address="127.0.0.1:0", thumbnail_cache=folder)) as server:
        yield server


@pytest.fixture
def server(shared_server: RunningServer, farm: Farm) -> RunningServer:
    """The server over the emptied farm, without keys."""
    assert farm is shared_server.app.state.context.farm
    return shared_server


@pytest.fixture
def serving(farm: Farm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Start further servers, with other settings; each ends with the test."""
    with ExitStack() as stack:

        def start(
            on: Farm | None = None,
            *,
            operations: Sequence[Operation] = OPERATIONS,
            header_timeout_s: float = 15.0,
            **fields: Any,
        ) -> RunningServer:
            chosen = {"address": "127.0.0.1:0", "thumbnail_cache": tmp_path_factory.mktemp("thumbnails"), **fields}
            settings = ServerSettings(**chosen)
            started = RunningServer(on or farm, settings, operations=operations, header_timeout_s=header_timeout_s)
            return stack.enter_context(started)

        yield start


# not of the session: its threads would serve the farm of the tests of other folders too
@pytest.fixture(scope="module")
def shared_worker(connected: Farm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    worker = RunningWorker(connected, tmp_path_factory.mktemp("model"))
    yield worker
    worker.stop()


@pytest.fixture
def rendering(shared_worker: RunningWorker, farm: Farm) -> Iterator[RunningWorker]:
    """A worker that renders the jobs of ``mini``."""
    assert farm.ledger
    with shared_worker.used() as worker:
        yield worker
