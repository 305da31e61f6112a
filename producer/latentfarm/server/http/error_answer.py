"""Turns every exception into the answer that its protocol defines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from latentfarm.errors import ConflictError, InputError, NotFoundError, SchemaError, UnavailableError
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.http.validation import invalid_request

log = logging.getLogger(__name__)

#: seconds after which a client tries again while Redis or the bucket is unavailable
_OUTAGE_RETRY_S = 5
#: seconds between two log lines of one outage, whose requests may be many
_LOG_PAUSE_S = 10.0
#: when each cause of an outage was logged last
_logged: dict[str, float] = {}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def as_request_error(error: Exception, request_id: str) -> RequestError:
    """Return the error that a client may read. It names no host, path or prompt of others."""
    for kind, convert in _KINDS:
        if isinstance(error, kind):
            return convert(error)
    log.error("request %s failed", request_id, exc_info=error)
    text = f"the server failed; its log has the reason under request {request_id}"
    return RequestError(500, "internal_error", text)


def _of_outage(error: UnavailableError) -> RequestError:
    _log_outage(error.cause, error)
    # the error's own text names hosts of the farm
    text = "the farm's store is unavailable" if error.cause == "store" else "the farm's ledger is unavailable"
    return RequestError(503, "unavailable", f"{text}; try again later", retry_after_s=_OUTAGE_RETRY_S)


def _of_framework(error: HTTPException) -> RequestError:
    if error.status_code == 404:
        return RequestError(404, "not_found", "the server has no such path")
    if error.status_code == 405:
        return RequestError(405, "method_not_allowed", "the path has no such method")
    return RequestError(error.status_code, "invalid_request", str(error.detail))


def _log_outage(cause: str, error: Exception) -> None:
    now = time.monotonic()
    if now - _logged.get(cause, -_LOG_PAUSE_S) >= _LOG_PAUSE_S:
        _logged[cause] = now
        log.warning("requests are answered 503: %s", error)


def _of_schema(error: SchemaError) -> RequestError:
    _log_outage("schema", error)
    return RequestError(503, "unavailable", "another version of latentfarm wrote the farm's ledger")


#: subclasses first
_KINDS: tuple[tuple[type[Exception], Callable[[Any], RequestError]], ...] = (
    (RequestError, lambda error: error),
    (ValidationError, invalid_request),
    (NotFoundError, lambda error: RequestError(404, "not_found", str(error))),
    (ConflictError, lambda error: RequestError(409, "conflict", str(error))),
    (InputError, lambda error: RequestError(400, "invalid_request", str(error))),
    (UnavailableError, _of_outage),
    (SchemaError, _of_schema),
    (HTTPException, _of_framework),
)


def error_answer(request: Request, error: Exception) -> JSONResponse:
    """Return the answer to a request that raised an error, in the shape of the request's protocol."""
    request_id = str(getattr(request.state, "request_id", ""))
    found = as_request_error(error, request_id)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if found.retry_after_s is not None:
        headers["Retry-After"] = str(found.retry_after_s)
    path = request.url.path
    if found.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="latentfarm"' if path.startswith("/sdapi/") else "Bearer"
    if path.startswith("/v1/"):
        # OpenAI's clients repeat each 408, 409, 429 and 5xx unless this header is false
        headers["x-should-retry"] = "false" if found.retry_after_s is None else "true"
    return JSONResponse(error_body(path, found), status_code=found.status, headers=headers)


def error_body(path: str, error: RequestError) -> Mapping[str, Any]:
    """Return the JSON of an error in the shape of the path's protocol."""
    if path.startswith("/sdapi/"):
        return {"error": error.code, "detail": error.message, "body": "", "errors": error.message}
    named: dict[str, Any] = {"code": error.code, "message": error.message, "param": error.param}
    if path.startswith("/v1/"):
        usual = "server_error" if error.status >= 500 else "invalid_request_error"
        named["type"] = _OPENAI_TYPES.get(error.status, usual)
    return {"error": named}
