"""Webhooks over real TLS on loopback: an endpoint that behaves in every way an endpoint can."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from latentfarm import webhooks
from latentfarm.ledger import Ledger
from latentfarm.ledger.webhooks import Webhooks
from latentfarm.settings import Settings
from latentfarm.webhooks import RETRY_DELAYS_S, deliver_due

pytestmark = pytest.mark.integration

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECRET = b"a secret of thirty-two bytes ..."
Reply = Callable[[BaseHTTPRequestHandler], None]


def status(code: int, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return reply


class Endpoint:
    """A TLS server: keeps what it was sent and answers with the next of ``replies``, then with 204."""

    def __init__(self, ca: trustme.CA, *names: str) -> None:
        self.received: list[tuple[str, dict[str, str], bytes]] = []
        self.replies: list[Reply] = []
        self.stopped = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                endpoint.received.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                (endpoint.replies.pop(0) if endpoint.replies else status(204))(self)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_: Any) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(*names).configure_cert(context)
        self.server = _Server(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Clients that go away in the middle are what is tested."""


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest.fixture
def endpoint(ca: trustme.CA, trusted: None) -> Iterator[Endpoint]:  # noqa: ARG001
    endpoint = Endpoint(ca, "localhost", "127.0.0.1")
    yield endpoint
    endpoint.close()


@pytest.fixture
def worker(settings: Settings) -> Settings:
    secret = SecretStr("whsec_" + base64.b64encode(SECRET).decode())
    return settings.model_copy(update={"webhook_secret": secret, "webhook_allow_private": True})


def ended(ledger: Ledger, url: str, *, batch: str = "cats", cancel: bool = False) -> None:
    """Let a batch of three jobs end as the ledger lets it, with one failed or with all cancelled."""
    ledger.reserve(batch, digest="d", model="mini", webhook=url)
    ledger.grow(batch, before=0, total=3, chain="c", closed=True)
    if cancel:
        ledger.cancel(batch)
        return
    work(ledger, fail=0)


def work(ledger: Ledger, *, fail: int | None = None) -> None:
    for lease in ledger.lease("mini", "test", 3, lease_s=60):
        if lease.index == fail:
            ledger.fail(lease, {"code": "nan", "message": "not finite"})
        else:
            ledger.commit(lease, {"key": "k"})


def facts(ledger: Ledger, batch: str = "cats") -> tuple[str, int, str]:
    """Return the state of a batch's webhook, the attempts at it and the last error."""
    client: Any = ledger.redis
    state, attempts, error = client.hmget(f"lf:batch:{batch}", "webhook_state", "webhook_attempts", "webhook_error")
    return state.decode(), int(attempts), error.decode()


def due_in_s(ledger: Ledger, batch: str = "cats") -> float:
    client: Any = ledger.redis
    seconds, micros = client.time()
    return float(client.zscore("lf:webhooks", batch) / 1000 - seconds - micros / 1e6)


def due_now(ledger: Ledger, batch: str = "cats") -> None:
    """Let the time until the next attempt pass, without waiting for it."""
    client: Any = ledger.redis
    client.zadd("lf:webhooks", {batch: 1})


def is_signed(headers: dict[str, str], body: bytes) -> bool:
    """Verify as a receiver would, by the specification's text alone."""
    message = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET, message, hashlib.sha256).digest()).decode()
    return (
        headers["webhook-signature"] == f"v1,{expected}" and abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    )


def test_the_end_of_a_batch_arrives_signed_and_once(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/hook?token=t")
    assert deliver_due(ledger, worker) == 1
    [(path, headers, body)] = endpoint.received
    assert path == "/hook?token=t"
    assert headers["host"] == f"localhost:{endpoint.port}"
    assert headers["content-type"] == "application/json"
    assert is_signed(headers, body)
    message = json.loads(body)
    assert message["type"] == "batch.completed"
    completed_ms = int(ledger.redis.hget("lf:batch:cats", "completed_ms") or 0)
    assert datetime.fromisoformat(message["timestamp"]) == EPOCH + timedelta(milliseconds=completed_ms)
    assert message["data"] == {
        "batch": "cats",
        "model": "mini",
        "state": "complete",
        "total": 3,
        "done": 2,
        "failed": 1,
        "cancelled": 0,
        "errors": {"nan": 1},
    }
    assert facts(ledger) == ("sent", 1, "")
    assert ledger.redis.zcard("lf:webhooks") == 0
    assert deliver_due(ledger, worker) == 0
    assert len(endpoint.received) == 1


def test_a_cancelled_batch_is_told_as_such(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/", cancel=True)
    assert deliver_due(ledger, worker) == 1
    message = json.loads(endpoint.received[0][2])
    assert (message["type"], message["data"]["state"]) == ("batch.cancelled", "cancelled")
    assert (message["data"]["cancelled"], "errors" in message["data"]) == (3, False)


def test_after_a_500_the_same_event_comes_again_under_its_id(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    endpoint.replies = [status(500)]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 0
    assert facts(ledger) == ("due", 1, "the answer was 500")
    assert RETRY_DELAYS_S[0] - 1 <= due_in_s(ledger) <= RETRY_DELAYS_S[0] * 1.2
    assert deliver_due(ledger, worker) == 0, "it is not due yet"
    due_now(ledger)
    assert deliver_due(ledger, worker) == 1
    (_, first, body), (_, second, again) = endpoint.received
    assert first["webhook-id"] == second["webhook-id"]
    assert body == again
    assert is_signed(second, again)
    assert facts(ledger)[:2] == ("sent", 2)


def test_an_event_that_nobody_takes_is_given_up_after_the_last_delay(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    endpoint.replies = [status(503)] * 20
    ended(ledger, f"https://localhost:{endpoint.port}/")
    for delay_s in RETRY_DELAYS_S:
        assert deliver_due(ledger, worker) == 0
        assert delay_s - 1 <= due_in_s(ledger) <= delay_s * 1.2
        due_now(ledger)
    assert deliver_due(ledger, worker) == 0
    assert len(endpoint.received) == len(RETRY_DELAYS_S) + 1 == 9
    assert facts(ledger) == ("failed", 9, "the answer was 503; attempt 9 was the last")
    assert ledger.redis.zcard("lf:webhooks") == 0


def test_an_endpoint_that_is_gone_is_asked_no_more(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    endpoint.replies = [status(410)]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 0
    assert facts(ledger) == ("failed", 1, "the answer was 410; attempt 1 was the last")
    assert ledger.redis.zcard("lf:webhooks") == 0


def test_an_endpoint_may_ask_for_a_longer_wait(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    endpoint.replies = [status(429, **{"Retry-After": "700"})]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    deliver_due(ledger, worker)
    assert 698 <= due_in_s(ledger) <= 700


def test_a_redirect_is_a_failure_and_not_followed(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    for code in (301, 302, 307, 308):
        ended(ledger, f"https://localhost:{endpoint.port}/", batch=f"b{code}")
        endpoint.replies = [status(code, location=f"https://localhost:{endpoint.port}/elsewhere")]
        assert deliver_due(ledger, worker) == 0
        assert facts(ledger, f"b{code}")[2].startswith(f"the answer was {code}, and redirects are not followed")
    assert [path for path, _, _ in endpoint.received] == ["/"] * 4


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"])
def test_a_private_address_is_refused_unless_allowed_however_it_is_written(
    ledger: Ledger, worker: Settings, endpoint: Endpoint, host: str
) -> None:
    ended(ledger, f"https://{host}:{endpoint.port}/")
    careful = worker.model_copy(update={"webhook_allow_private": False})
    assert deliver_due(ledger, careful) == 0
    state, _, error = facts(ledger)
    assert state == "due"
    assert "is no public address" in error
    assert "LATENTFARM_WEBHOOK_ALLOW_PRIVATE=true" in error
    assert endpoint.received == []


def test_one_private_address_among_public_ones_is_refused(
    ledger: Ledger, worker: Settings, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_: str, port: int, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", (address, port)) for address in ("8.8.8.8", "127.0.0.1")]

    # what an attacker's name server answers
    monkeypatch.setattr(socket, "getaddrinfo", answer)
    client: Any = ledger.redis
    client.ping()
    ended(ledger, f"https://two.example:{endpoint.port}/")
    deliver_due(ledger, worker.model_copy(update={"webhook_allow_private": False}))
    assert "two.example is 127.0.0.1, which is no public address" in facts(ledger)[2]
    assert endpoint.received == []


def test_a_name_is_asked_for_once_and_the_checked_address_is_used(
    ledger: Ledger, worker: Settings, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = socket.getaddrinfo

    def answer(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        # an address asks nobody
        if host[0].isdigit():
            return real(host, port, *rest, **more)
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 1
    assert asked == ["localhost"]


def test_plain_http_is_refused_even_where_private_addresses_are_allowed(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    ended(ledger, f"http://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 0
    assert "only https is allowed" in facts(ledger)[2]
    assert endpoint.received == []


def test_a_certificate_of_another_host_is_refused(
    ledger: Ledger,
    worker: Settings,
    ca: trustme.CA,
    endpoint: Endpoint,  # noqa: ARG001
) -> None:
    other = Endpoint(ca, "other.example")
    ended(ledger, f"https://localhost:{other.port}/")
    assert deliver_due(ledger, worker) == 0
    other.close()
    assert "certificate is not valid for 'localhost'" in facts(ledger)[2]
    assert other.received == []


def test_a_certificate_that_nobody_vouches_for_is_refused(
    ledger: Ledger, worker: Settings, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 0
    assert "CERTIFICATE_VERIFY_FAILED" in facts(ledger)[2]
    assert endpoint.received == []


def test_no_proxy_of_the_environment_is_asked(
    ledger: Ledger, worker: Settings, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 1


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
    monkeypatch.setattr(webhooks, "_ATTEMPT_S", 1.0)
    endpoint.replies = [slow(endpoint)]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    began = time.monotonic()
    assert deliver_due(ledger, worker) == 0
    assert time.monotonic() - began < 2
    assert facts(ledger) == ("due", 1, "no answer within 1 s")


def test_a_listener_that_never_speaks_tls_is_cut_off_too(
    ledger: Ledger, worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "_ATTEMPT_S", 0.5)
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
    monkeypatch.setattr(webhooks, "_ATTEMPT_S", 2.0)
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


def test_two_workers_at_once_deliver_each_event_once(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    for number in range(12):
        ended(ledger, f"https://localhost:{endpoint.port}/", batch=f"b{number}")
    start = threading.Barrier(2)

    def deliver(_: int) -> int:
        mine = Ledger.connect(worker.redis_url)
        start.wait()
        delivered = 0
        while sent := deliver_due(mine, worker):
            delivered += sent
        return delivered

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(deliver, range(2))) == 12
    told = [json.loads(body)["data"]["batch"] for _, _, body in endpoint.received]
    assert sorted(told) == sorted(f"b{number}" for number in range(12))


def test_the_event_of_a_killed_sender_is_delivered_later(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    reached = threading.Event()

    def stall(_: BaseHTTPRequestHandler) -> None:
        reached.set()
        endpoint.stopped.wait(30)

    endpoint.replies = [stall]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    program = (
        "from latentfarm.ledger import Ledger; from latentfarm.settings import Settings; "
        "from latentfarm.webhooks import deliver_due; "
        "s = Settings.load(); deliver_due(Ledger.connect(s.redis_url), s)"
    )
    hooks = {
        "LATENTFARM_WEBHOOK_SECRET": worker.webhook_secret.get_secret_value(),
        "LATENTFARM_WEBHOOK_ALLOW_PRIVATE": "true",
    }
    sender = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **worker.environment(), **hooks})
    assert reached.wait(60)
    sender.send_signal(signal.SIGKILL)
    sender.wait()

    assert deliver_due(ledger, worker) == 0, "it is held for whoever was sending it"
    assert 50 < due_in_s(ledger) <= 60
    due_now(ledger)
    assert deliver_due(ledger, worker) == 1
    first, second = (headers["webhook-id"] for _, headers, _ in endpoint.received)
    assert first == second
    assert facts(ledger)[:2] == ("sent", 2)


def test_without_a_secret_the_attempt_fails_and_comes_again(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker.model_copy(update={"webhook_secret": SecretStr("")})) == 0
    state, attempts, error = facts(ledger)
    assert (state, attempts) == ("due", 1)
    assert error.startswith("LATENTFARM_WEBHOOK_SECRET is not set; set one on the workers")
    assert endpoint.received == []
    due_now(ledger)
    assert deliver_due(ledger, worker) == 1


def test_a_batch_that_ends_again_is_told_again_under_a_new_id(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/")
    deliver_due(ledger, worker)
    assert ledger.retry("cats", [(0, "nan")]) == 1
    work(ledger)
    assert deliver_due(ledger, worker) == 1
    first, second = (headers["webhook-id"] for _, headers, _ in endpoint.received)
    assert first != second
    assert [json.loads(body)["data"]["done"] for _, _, body in endpoint.received] == [2, 3]


def test_a_batch_whose_failed_jobs_run_again_is_told_of_at_its_next_end(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/")
    ledger.retry("cats", [(0, "nan")])
    assert deliver_due(ledger, worker) == 0
    assert endpoint.received == []
    assert ledger.batch("cats").webhook == ""
    assert ledger.redis.zcard("lf:webhooks") == 0
    work(ledger)
    assert ledger.batch("cats").webhook == "due"
    assert deliver_due(ledger, worker) == 1
    assert ledger.batch("cats").webhook == "sent"


def test_a_deleted_batch_is_not_told_and_nothing_of_it_comes_back(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/")
    ledger.begin_delete("cats")
    assert deliver_due(ledger, worker) == 0
    # a sender may have asked for another try meanwhile
    due_now(ledger)
    assert deliver_due(ledger, worker) == 0
    ledger.forget("cats")
    due_now(ledger)
    assert deliver_due(ledger, worker) == 0
    assert endpoint.received == []
    assert not ledger.redis.exists("lf:batch:cats", "lf:webhooks")


def test_an_attempt_that_is_late_decides_nothing_unless_it_arrived(ledger: Ledger) -> None:
    outbox = Webhooks(ledger.redis, ledger.where)
    ended(ledger, "https://x.org/")
    [first] = outbox.take(5, hold_s=60)
    assert outbox.take(5, hold_s=60) == []
    due_now(ledger)
    [second] = outbox.take(5, hold_s=60)
    assert (first.attempt, second.attempt) == (1, 2)
    assert not outbox.retry(first, "late", delay_s=1)
    assert not outbox.give_up(first, "late")
    assert facts(ledger) == ("due", 2, "")
    assert outbox.problem("cats") == ""
    assert outbox.retry(second, "the answer was 500", delay_s=60)
    assert outbox.problem("cats") == "the answer was 500"
    assert outbox.sent(first)
    assert outbox.problem("cats") == ""
    assert not outbox.retry(second, "it was there already", delay_s=1)
    assert facts(ledger)[0] == "sent"


def test_what_becomes_of_an_earlier_end_does_not_touch_the_later_one(ledger: Ledger) -> None:
    outbox = Webhooks(ledger.redis, ledger.where)
    ended(ledger, "https://x.org/")
    [first] = outbox.take(5, hold_s=60)
    ledger.retry("cats", [(0, "nan")])
    work(ledger)
    assert not outbox.sent(first)
    assert facts(ledger) == ("due", 0, "")
    assert [event.done for event in outbox.take(5, hold_s=60)] == [3]
