"""Spot notices from a real HTTP server that imitates AWS's instance metadata service, and its failures."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import ClassVar

import pytest

from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.spot import InstanceMetadata, MetadataError, SpotWatch
from latentfarm_worker.service.threads import Threads

pytestmark = pytest.mark.integration

TOKEN, NOTICE = "/latest/api/token", "/latest/meta-data/spot/instance-action"


class Service(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, tuple[int, str]]] = {}
    tokens: ClassVar[list[str]] = []
    seen: ClassVar[list[str]] = []

    def do_PUT(self) -> None:
        assert 1 <= int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21_600
        self.tokens.append(f"token-{len(self.tokens)}")
        self._answer(*self.answers.get(TOKEN, (200, self.tokens[-1])))

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != (self.tokens or ["none yet"])[-1]:
            self._answer(401, "")
        else:
            self._answer(*self.answers.get(self.path, (404, "")))

    def _answer(self, status: int, body: str) -> None:
        self.seen.append(f"{self.command} {self.path} {status}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[InstanceMetadata]:
    for kept in (Service.answers, Service.tokens, Service.seen):
        kept.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    Thread(target=server.serve_forever, daemon=True).start()
    yield InstanceMetadata(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_without_a_notice_one_token_serves_many_requests(metadata: InstanceMetadata) -> None:
    assert [metadata.notice() for _ in range(3)] == [None, None, None]
    assert Service.seen == [f"GET {NOTICE} 401", f"PUT {TOKEN} 200", *[f"GET {NOTICE} 404"] * 3]


def test_a_notice_contains_the_action_and_its_time(metadata: InstanceMetadata) -> None:
    Service.answers[NOTICE] = (200, '{"action": "stop", "time": "2026-11-23T18:02:00Z"}')
    assert metadata.notice() == "stop at 2026-11-23T18:02:00Z"


def test_an_expired_token_is_renewed(metadata: InstanceMetadata) -> None:
    assert metadata.notice() is None
    Service.tokens.append("another")
    assert metadata.notice() is None


@pytest.mark.parametrize("answer", [(500, ""), (200, "not JSON"), (200, "[]"), (200, '{"time": "now"}')])
def test_an_invalid_answer_is_an_error(metadata: InstanceMetadata, answer: tuple[int, str]) -> None:
    Service.answers[NOTICE] = answer
    with pytest.raises(MetadataError, match="instance-action answers"):
        metadata.notice()


def test_a_refused_token_is_an_error(metadata: InstanceMetadata) -> None:
    Service.answers[TOKEN] = (403, "")
    with pytest.raises(MetadataError, match="token answers 403"):
        metadata.notice()


def test_after_an_error_polling_continues(metadata: InstanceMetadata, caplog: pytest.LogCaptureFixture) -> None:
    Service.answers[NOTICE] = (500, "")
    noticed = Event()
    watch = SpotWatch(metadata, noticed.set, threads=Threads(Metrics("mini")), poll_s=0.02)
    try:
        while len(Service.seen) < 8:
            assert not noticed.wait(0.01)
        Service.answers[NOTICE] = (200, '{"action": "terminate", "time": "2026-11-23T18:02:00Z"}')
        assert noticed.wait(10)
    finally:
        watch.close()
    assert caplog.text.count("no spot notices") == 1


def test_after_an_unexpected_exception_polling_continues(
    metadata: InstanceMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    Service.answers[NOTICE] = (200, '{"action": "stop", "time": "2026-11-23T18:02:00Z"}')
    notice, left = metadata.notice, iter(range(2))

    def raise_twice() -> str | None:
        if next(left, None) is not None:
            raise RuntimeError("unexpected")
        return notice()

    monkeypatch.setattr(metadata, "notice", raise_twice)
    noticed, threads = Event(), Threads(Metrics("mini"))
    watch = SpotWatch(metadata, noticed.set, threads=threads, poll_s=0.02)
    assert noticed.wait(10)
    watch.close()
    assert threads.problem() == ""


def test_an_unreachable_service_is_an_error() -> None:
    with pytest.raises(MetadataError, match="does not answer"):
        InstanceMetadata("http://127.0.0.1:1").notice()
