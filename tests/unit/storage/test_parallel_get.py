from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from botocore.credentials import Credentials

from latentfarm.storage.parallel_get import SignedGetClient


class Store(ThreadingHTTPServer):
    """Answers every GET with its path, and counts the connections. It may close one that waits, without a notice."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.closes = False
        self.connections = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200 if self.headers["Authorization"].startswith("AWS4-HMAC-SHA256") else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.server.closes

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Print nothing."""


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(store: Store) -> Iterator[SignedGetClient]:
    client = SignedGetClient(f"http://127.0.0.1:{store.server_port}/b", "us-east-1", Credentials("key", "secret"))
    yield client
    client.close()


def test_one_connection_serves_requests_that_follow_each_other(store: Store, client: SignedGetClient) -> None:
    assert [client.get(f"a {number}") for number in range(9)] == [b"/b/a%%20%d" % number for number in range(9)]
    assert store.connections == 1


def test_a_connection_that_the_store_closed_while_it_waited_is_replaced(store: Store, client: SignedGetClient) -> None:
    store.closes = True
    assert {client.get("k") for _ in range(20)} == {b"/b/k"}


def test_a_store_that_is_down_is_not_an_error(store: Store) -> None:
    store.server_close()
    client = SignedGetClient(f"http://127.0.0.1:{store.server_port}/b", "us-east-1", Credentials("key", "secret"))
    assert client.get("k") is None
