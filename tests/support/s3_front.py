"""A proxy in front of the S3 server that records requests and answers chosen methods itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

from latentfarm.settings import Settings

#: a status and a body
Answer = tuple[int, bytes]


@dataclass(frozen=True)
class Right:
    """One right that a request needs: the action, the object's key, and for a listing its prefix."""

    action: str
    key: str = ""
    prefix: str = ""


def s3_error(code: str, status: int = 403) -> Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>no</Message></Error>'
    return status, text.encode()


@contextmanager
def front(settings: Settings, answers: Mapping[str, Answer], seen: set[Right] | None = None) -> Iterator[Settings]:
    """Serve the store, except for the methods in ``answers``; ``seen`` collects the rights that requests need."""
    store = urlsplit(settings.s3_endpoint_url).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if seen is not None:
                seen.update(rights_of(self.command, self.path, body))
            status, found = answers.get(self.command, (0, b""))
            if not status:
                status, found = self.query_store(body)
            self.send_response(status)
            self.send_header("content-length", str(len(found)))
            self.send_header("content-type", "application/xml")
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else found)

        def query_store(self, body: bytes) -> Answer:
            with closing(HTTPConnection(store)) as connection:
                # the signature covers the requested host
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                with connection.getresponse() as answer:
                    return answer.status, answer.read()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield settings.model_copy(update={"s3_endpoint_url": f"http://127.0.0.1:{server.server_port}"})
        finally:
            server.shutdown()


def rights_of(method: str, path: str, body: bytes) -> Iterator[Right]:
    """Yield the rights that AWS requires for a request, as its Service Authorization Reference lists them."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    key = unquote(parts.path.lstrip("/").partition("/")[2])
    if method == "POST" and "delete" in query:
        for found in re.findall(r"<Key>(.*?)</Key>", body.decode()):
            yield Right("s3:DeleteObject", found)
    elif key:
        yield Right({"PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}.get(method, "s3:GetObject"), key)
    elif method in {"GET", "HEAD"}:
        yield Right("s3:ListBucket", prefix=query.get("prefix", [""])[0])
    else:
        yield Right(f"{method} {path}")
