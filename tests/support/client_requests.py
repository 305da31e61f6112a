"""Requests as clients of other projects send them, byte for byte, and a way to send them.

A file in ``tests/compatibility/clients`` has one request after each line ``### <name>``: its header, and after an empty
line its body, which the line's end does not belong to. ``{host}`` and ``{basic}`` stand for what depends on the server:
the Host and the credentials of Basic authentication.
"""

from __future__ import annotations

import json
import re
import socket
from base64 import b64encode
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parents[1] / "compatibility" / "clients"
_MARK = re.compile(r"^### (.+)\n", re.MULTILINE)


@dataclass(frozen=True)
class ClientAnswer:
    status: int
    headers: HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class ClientRequest:
    """``header`` ends with an empty line."""

    header: str
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def encode(self, host: str, credentials: str = "") -> bytes:
        """Return the bytes of the request. ``credentials`` are ``name:password``."""
        basic = f"Basic {b64encode(credentials.encode()).decode()}"
        return self.header.replace("{host}", host).replace("{basic}", basic).replace("\n", "\r\n").encode() + self.body

    def send(self, url: str, credentials: str = "", *, timeout_s: float = 60) -> ClientAnswer:
        """Send the request to a server; ``url`` is ``http://host:port``."""
        host, port = url.removeprefix("http://").rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
            connection.sendall(self.encode(f"{host}:{port}", credentials))
            with HTTPResponse(connection) as response:
                response.begin()
                return ClientAnswer(response.status, response.headers, response.read())


def client_requests(client: str) -> dict[str, ClientRequest]:
    """Return the requests of a client by name."""
    text = (_FOLDER / f"{client}.http").read_text(encoding="utf-8")
    parts = _MARK.split(text)[1:]
    return {name: _parse(part) for name, part in zip(parts[::2], parts[1::2], strict=True)}


def _parse(text: str) -> ClientRequest:
    header, _, body = text.partition("\n\n")
    body = body.strip("\n")
    if "multipart/form-data" in header:
        # the lines of a form end like those of a header, the last one too
        body = f"{body}\n".replace("\n", "\r\n")
    found = ClientRequest(f"{header.strip()}\n\n", body.encode())
    lengths = re.findall(r"^content-length: (\d+)$", found.header, re.MULTILINE | re.IGNORECASE)
    assert lengths == ([str(len(found.body))] if header.startswith("POST") else []), header
    return found
