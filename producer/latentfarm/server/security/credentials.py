"""The credentials of a request: a key in a header, or the cookie of a session."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from starlette.requests import Request

from latentfarm.server.security.session import cookie_of


@dataclass(frozen=True)
class Credentials:
    """What a client has sent.

    Attributes:
        secret: a key, empty if none was sent.
        cookie: the cookie of a session; empty if a key was sent.
        explicit: whether only a program can have sent it: a browser never adds it for another page by itself.
    """

    secret: str = ""
    cookie: str = ""
    explicit: bool = False


def credentials_of(request: Request) -> Credentials:
    """Return the credentials: of ``Authorization``, else of ``X-API-Key``, else of the cookie."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return Credentials(secret=value.strip(), explicit=True)
    if scheme.lower() == "basic":
        # AUTOMATIC1111's clients. A browser adds a password that it knows to requests of any page
        return Credentials(secret=_password(value))
    if key := request.headers.get("x-api-key", ""):
        return Credentials(secret=key.strip(), explicit=True)
    return Credentials(cookie=cookie_of(request.cookies))


def _password(encoded: str) -> str:
    """Return the password of ``Basic``; the user's name is of no importance."""
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError):
        return ""
    return text.partition(":")[2]
