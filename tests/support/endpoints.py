"""An endpoint over TLS on loopback, for webhooks and images, and batches that end."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import trustme
from standardwebhooks import Webhook

from latentfarm.ledger import Ledger

SECRET = b"a secret of thirty-two bytes ..."
Reply = Callable[[BaseHTTPRequestHandler], None]


def status(code: int, **headers: str) -> Reply:
    """Answer with a status and some headers."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return reply


class Endpoint:
    """A TLS server that keeps its requests and answers with the next of ``replies``, then with 204."""

    def __init__(self, ca: trustme.CA, *names: str) -> None:
        self.received: list[tuple[str, dict[str, str], bytes]] = []
        self.replies: list[Reply] = []
        self.stopped = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
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
        """Ignore clients that disconnect: that is what is tested."""


def ended(ledger: Ledger, url: str, *, batch: str = "cats", cancel: bool = False) -> None:
    """End a batch of three jobs, with one failed or all cancelled."""
    ledger.create_batch(batch, digest="d", model="mini", webhook=url)
    ledger.append_jobs(batch, before=0, total=3, parts_digest="c", closed=True)
    if cancel:
        ledger.cancel(batch)
        return
    work(ledger, fail=0)


def work(ledger: Ledger, *, fail: int | None = None) -> None:
    """Commit the pending jobs as a worker does, and fail one of them; record that their results are stored."""
    leases = ledger.lease("mini", "test", 3, lease_s=60)
    for lease in leases:
        if lease.index == fail:
            ledger.fail(lease, {"code": "nan", "message": "not finite"})
        else:
            ledger.commit([(lease, {"key": "k"})])
    for batch in {lease.batch for lease in leases}:
        assert ledger.drop_flushed(batch, 0, retries=ledger.batch(batch).retries)


def facts(ledger: Ledger, batch: str = "cats") -> tuple[str, int, str]:
    """Return the state of a batch's webhook, the attempts at it and the last error."""
    client: Any = ledger.redis
    state, attempts, error = client.hmget(f"{{lf}}:batch:{batch}", "webhook_state", "webhook_attempts", "webhook_error")
    return state.decode(), int(attempts), error.decode()


def verify(headers: dict[str, str], body: bytes) -> Any:
    """Return the message, verified as a receiver does; raise WebhookVerificationError if its signature is wrong."""
    return Webhook(SECRET).verify(body, headers)
