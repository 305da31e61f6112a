"""Reads bodies of requests, within a limit that holds while they are read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, NoReturn, TypeVar, overload

from pydantic import BaseModel
from starlette.requests import Request

from latentfarm.server.http.request_error import RequestError

#: a body that is parsed in a millisecond or so
_SHORT_BYTES = 1_048_576

Model = TypeVar("Model", bound=BaseModel)


def declared_length(request: Request) -> int | None:
    """Return the length of the body that the client declares, None if it sends the body in chunks."""
    text = request.headers.get("content-length", "")
    # more digits than any limit has: int() would refuse or be slow
    return int(text[:20]) if text.isascii() and text.isdigit() else None


def check_length(length: int, limit: int) -> None:
    """Refuse a body that is longer than ``limit`` bytes."""
    if length > limit:
        raise RequestError(413, "body_too_large", f"the body is longer than {limit} bytes; send less at once")


async def body_chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. One of more than ``limit`` bytes is refused before they are read.

    Raises:
        RequestError: 413.
    """
    check_length(declared_length(request) or 0, limit)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        check_length(received, limit)
        yield chunk


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body, of at most ``limit`` bytes. A longer one is refused before it is in memory."""
    return b"".join([chunk async for chunk in body_chunks(request, limit)])


@overload
async def read_json(request: Request, model: type[Model], limit: int | None = None) -> Model: ...
@overload
async def read_json(request: Request, model: None = None, limit: int | None = None) -> Any: ...
async def read_json(request: Request, model: type[Model] | None = None, limit: int | None = None) -> Any:
    """Return the JSON body, validated by ``model`` if one is given.

    Args:
        request: the request. Its content type must be JSON: a page of another origin can send any other type.
        model: the model of the body.
        limit: bytes [default: the setting ``max_body_bytes``].

    Raises:
        RequestError: 413, 415, or 400 with the place and the cure.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise RequestError(
            415, "unsupported_media_type", f"the content type is {kind[:80]!r}; send Content-Type: application/json"
        )
    context = request.app.state.context
    body = await read_body(request, context.settings.max_body_bytes if limit is None else limit)
    # megabytes of base64 would stop the event loop
    value = parse_json(body) if len(body) <= _SHORT_BYTES else await context.run(parse_json, body)
    return value if model is None else model.model_validate(value)


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text in UTF-8. Numbers that JSON lacks and lone surrogates are refused.

    Raises:
        RequestError: 400 with the place and the cure.
    """
    if not body:
        raise _invalid("the body is empty; send a JSON object")
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:
            # an escaped half of a pair, which no store can encode
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise _invalid(f"the body is not JSON: {error.msg} at {place}; correct the body") from None
    except UnicodeDecodeError as error:
        raise _invalid(f"the body is not UTF-8 at byte {error.start}; encode it in UTF-8") from None
    except UnicodeEncodeError:
        raise _invalid("the body has an unpaired surrogate; write whole characters") from None
    except RecursionError:
        raise _invalid("the body is nested too deeply; send fewer levels") from None
    except ValueError as error:
        raise _invalid(f"the body is not JSON: {error}; correct the body") from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _invalid(message: str) -> RequestError:
    return RequestError(400, "invalid_json", message)
