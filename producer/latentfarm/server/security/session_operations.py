"""``/api/session``: begin, show and end the session of a browser."""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from latentfarm.server.http.body import read_json
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.security.access import Access, access_of, keep_access
from latentfarm.server.security.credentials import credentials_of
from latentfarm.server.security.guard import guard_of
from latentfarm.server.security.session import SESSION_S, cookie_name, csrf_token, expiry_of, new_session

_MAX_BODY_BYTES = 16_384


class SessionBody(BaseModel):
    """A key."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(min_length=1, max_length=1_024, description="A key of the farm", repr=False)


class SessionAnswer(BaseModel):
    """Who sends the requests of this browser."""

    name: str = Field(description="Name of the key; `local` on a server without keys")
    scopes: list[Scope] = Field(description="What the key allows")
    csrf_token: str = Field(description="Value of the header X-CSRF-Token of changes; empty without a cookie")
    expires_at: int | None = Field(description="When the session ends, in seconds since 1970; null without a cookie")


async def create_session(request: Request) -> Response:
    """Set the cookie of a new session."""
    guard = guard_of(request)
    body = await read_json(request, SessionBody, limit=_MAX_BODY_BYTES)
    if guard.keyless:
        raise RequestError(409, "no_keys", "the server has no keys and needs no session; send requests without one")
    key = guard.key_of(request, body.key)
    keep_access(request, key.access)
    secret = await guard.session_secret()
    cookie = new_session(secret, key, now_s=time.time())
    answer = _answer(key.access, secret, cookie, status=201)
    _set_cookie(answer, cookie, SESSION_S, https=_is_https(request))
    return answer


async def show_session(request: Request) -> Response:
    """Return the sender's name, scopes and token."""
    cookie = credentials_of(request).cookie
    guard = guard_of(request)
    if guard.keyless or not cookie:
        return _answer(access_of(request), b"", "")
    return _answer(access_of(request), await guard.session_secret(), cookie)


async def delete_session(_request: Request) -> Response:
    """Remove the cookie."""
    answer = Response(status_code=204)
    for https in (True, False):
        _set_cookie(answer, "", 0, https=https)
    return answer


def _answer(access: Access, secret: bytes, cookie: str, *, status: int = 200) -> JSONResponse:
    body = SessionAnswer(
        name=access.name,
        scopes=[scope for scope in Scope if scope is not Scope.NONE and access.allows(scope)],
        csrf_token=csrf_token(secret, cookie) if cookie else "",
        expires_at=expiry_of(cookie) if cookie else None,
    )
    return JSONResponse(body.model_dump(mode="json"), status_code=status)


def _set_cookie(answer: Response, cookie: str, age_s: int, *, https: bool) -> None:
    answer.set_cookie(
        cookie_name(https=https), cookie, max_age=age_s, path="/", secure=https, httponly=True, samesite="strict"
    )


def _is_https(request: Request) -> bool:
    """Return whether the browser uses https, also where a proxy ends it: the page's origin shows it."""
    return request.url.scheme == "https" or request.headers.get("origin", "").lower().startswith("https://")


OPERATIONS = (
    Operation(
        "POST",
        "/api/session",
        create_session,
        Scope.NONE,
        "Begin a session of a browser",
        audited=True,
        body=SessionBody,
        answer=SessionAnswer,
        status=201,
    ),
    Operation("GET", "/api/session", show_session, Scope.READ, "Show the sender's name", answer=SessionAnswer),
    Operation("DELETE", "/api/session", delete_session, Scope.NONE, "End a session of a browser", status=204),
)
