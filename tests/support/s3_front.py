"""A proxy in front of the S3 server that records requests, answers chosen methods itself, and has faults on demand."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from latentfarm.settings import Settings

#: a status and a body
Answer = tuple[int, bytes]
Kind = Literal["freeze", "freeze_body", "reset", "truncate", "error_in_200", "page_in_200", "empty_200"]
#: the store refuses a request whose date differs by more
MAX_SKEW_S = 15 * 60
_HOP_BY_HOP = {"connection", "content-length", "transfer-encoding", "date", "server"}


@dataclass(frozen=True)
class Right:
    """One right that a request needs: the action, the object's key, and for a listing its prefix."""

    action: str
    key: str = ""
    prefix: str = ""


@dataclass
class Faults:
    """The faults of a front; all may be changed while it serves.

    Attributes:
        kind: the fault of each request that ``picks`` chooses; None for no fault.
        picks: chooses requests by method and path.
        times: requests that still have the fault; None for all.
        missing_s: seconds after its put for which an object is answered with 404, as by an eventually consistent store.
        skew_s: seconds that the store's clock is ahead.
        refuses: methods that the store answers with 501; ``POST`` is DeleteObjects.
        thawed: ends a freeze.
        met: the number of requests that had each fault.
    """

    kind: Kind | None = None
    picks: Callable[[str, str], bool] = lambda _method, _path: True
    times: int | None = None
    missing_s: float = 0.0
    skew_s: float = 0.0
    refuses: frozenset[str] = frozenset()
    thawed: Event = field(default_factory=Event)
    met: Counter[str] = field(default_factory=Counter)
    _put_at: dict[str, float] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def take(self, method: str, path: str) -> Kind | None:
        """Return the fault of a request, and count it."""
        with self._lock:
            if self.kind is None or self.times == 0 or not self.picks(method, path):
                return None
            if self.times is not None:
                self.times -= 1
            self.met[self.kind] += 1
            return self.kind

    def put(self, path: str) -> None:
        """Note that an object was put."""
        with self._lock:
            self._put_at[path] = time.monotonic()

    def hides(self, path: str) -> bool:
        """Return whether an object was put too recently to be seen."""
        with self._lock:
            hidden = time.monotonic() < self._put_at.get(path, -self.missing_s) + self.missing_s
            self.met["missing"] += hidden
            return hidden


@dataclass
class _Reply:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def s3_error(code: str, status: int = 403) -> Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>no</Message></Error>'
    return status, text.encode()


#: bodies of answers of status 200 that are not the store's; the page is a proxy's
_OWN_BODIES = {
    "error_in_200": s3_error("InternalError")[1],
    "page_in_200": b"<html><head><title>Sign in</title></head><body>Please sign in.</body></html>",
    "empty_200": b"",
}


@contextmanager
def front(
    settings: Settings,
    answers: Mapping[str, Answer] | None = None,
    seen: set[Right] | None = None,
    faults: Faults | None = None,
) -> Iterator[Settings]:
    """Serve the store, except for the methods in ``answers``; ``seen`` collects the rights that requests need."""
    endpoint = urlsplit(settings.s3_endpoint_url)
    found = faults or Faults()

    fields = {"store": endpoint.netloc, "answers_of": answers or {}, "seen_rights": seen, "faults": found}
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), fields)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield settings.model_copy(update={"s3_endpoint_url": f"http://127.0.0.1:{server.server_port}"})
        finally:
            found.thawed.set()
            server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # a frozen request's thread ends with the test's process at the latest
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Ignore a client that hung up before its answer: faults make it do so."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: str
    answers_of: Mapping[str, Answer]
    seen_rights: set[Right] | None
    faults: Faults

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.seen_rights is not None:
            self.seen_rights.update(rights_of(self.command, self.path, body))
        kind = self.faults.take(self.command, self.path)
        if kind == "freeze":
            self.faults.thawed.wait()
            kind = "reset"
        if kind == "reset":
            self.close_connection = True
            return
        reply = self.own_reply(kind) or self.query_store(body)
        self.send(reply, kind)

    def own_reply(self, kind: Kind | None) -> _Reply | None:
        """Return the front's own answer; None if the store answers."""
        answer = self.answers_of.get(self.command)
        if self.command in self.faults.refuses:
            answer = s3_error("NotImplemented", 501)
        elif abs(self.faults.skew_s) > MAX_SKEW_S:
            answer = s3_error("RequestTimeTooSkewed")
        elif kind in _OWN_BODIES:
            answer = 200, _OWN_BODIES[kind]
        elif self.command in {"GET", "HEAD"} and self.faults.hides(urlsplit(self.path).path):
            answer = s3_error("NoSuchKey", 404)
        return _Reply(*answer) if answer else None

    def query_store(self, body: bytes) -> _Reply:
        with closing(HTTPConnection(self.store)) as connection:
            # the signature covers the requested host
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            with connection.getresponse() as answer:
                headers = {key: value for key, value in answer.getheaders() if key.lower() not in _HOP_BY_HOP}
                if self.command == "HEAD" and (length := answer.getheader("content-length")) is not None:
                    headers["content-length"] = length
                reply = _Reply(answer.status, answer.read(), headers)
        if self.command == "PUT" and reply.status == 200:
            self.faults.put(urlsplit(self.path).path)
        return reply

    def send(self, reply: _Reply, kind: Kind | None) -> None:
        headers = {"content-type": "application/xml", **{key.lower(): value for key, value in reply.headers.items()}}
        headers.setdefault("content-length", str(len(reply.body)))
        self.send_response_only(reply.status)
        self.send_header("date", formatdate(time.time() + self.faults.skew_s, usegmt=True))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind in {"truncate", "freeze_body"}:
            self.wfile.write(reply.body[: len(reply.body) // 2])
            self.wfile.flush()
            if kind == "freeze_body":
                self.faults.thawed.wait()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(reply.body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        pass


def rights_of(method: str, path: str, body: bytes) -> Iterator[Right]:
    """Yield the rights that AWS requires for a request, as its Service Authorization Reference lists them."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    key = unquote(parts.path.lstrip("/").partition("/")[2])
    if method == "POST" and "delete" in query:
        for found in re.findall(r"<Key>(.*?)</Key>", body.decode()):
            yield Right("s3:DeleteObject", found)
    elif method == "DELETE" and "uploadId" in query:
        yield Right("s3:AbortMultipartUpload", key)
    elif key:
        actions = {"PUT": "s3:PutObject", "POST": "s3:PutObject", "DELETE": "s3:DeleteObject"}
        yield Right(actions.get(method, "s3:GetObject"), key)
    elif method == "GET" and "uploads" in query:
        yield Right("s3:ListBucketMultipartUploads", prefix=query.get("prefix", [""])[0])
    elif method in {"GET", "HEAD"}:
        yield Right("s3:ListBucket", prefix=query.get("prefix", [""])[0])
    else:
        yield Right(f"{method} {path}")
