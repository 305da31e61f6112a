"""Bodies are read within their limits, and an invalid one is a 4xx with the place and the cure."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from latentfarm.server.http.body import parse_json, read_body, read_json
from latentfarm.server.http.request_error import RequestError

pytestmark = pytest.mark.unit

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
)


def request_of(*chunks: bytes, kind: str = "application/json", length: str | None = None) -> Request:
    headers = [(b"content-type", kind.encode())]
    if length is not None:
        headers.append((b"content-length", length.encode()))
    waiting = list(chunks) or [b""]

    async def receive() -> dict[str, Any]:
        body = waiting.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(waiting)}

    app = SimpleNamespace(state=SimpleNamespace(context=SimpleNamespace(settings=SimpleNamespace(max_body_bytes=100))))
    return Request({"type": "http", "method": "POST", "headers": headers, "app": app}, receive)


def refusal(request: Request, *arguments: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        asyncio.run(read_json(request, *arguments))
    return caught.value


@given(VALUES)
def test_any_json_is_read_as_it_was_written(value: Any) -> None:
    for escaped in (True, False):
        text = json.dumps(value, ensure_ascii=escaped)
        assert parse_json(text.encode()) == value


@given(st.binary() | st.text(alphabet='[]{}",:-+.eE0123456789truefalsn\\ud8 ').map(str.encode))
def test_any_other_bytes_are_refused_and_never_a_fault(body: bytes) -> None:
    with suppress(RequestError):
        json.dumps(parse_json(body), ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "the body is empty"),
        (b'{"a": 1,\n"b" 2}', "line 2 column 5"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'["\xff"]', "not UTF-8 at byte 2"),
        (b'["\\ud800"]', "unpaired surrogate"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5_000, "not JSON"),
    ],
)
def test_what_is_wrong_has_a_place_and_a_cure(body: bytes, part: str) -> None:
    with pytest.raises(RequestError, match=part) as caught:
        parse_json(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_a_body_beyond_its_limit_is_refused_by_its_length_and_while_it_is_read() -> None:
    assert asyncio.run(read_body(request_of(b"ab", b"cd", length="4"), 4)) == b"abcd"
    # nothing is read: the request has no chunk that is as long as declared
    assert refusal(request_of(length="101")).status == 413
    assert refusal(request_of(length="9" * 4_000)).status == 413
    unread = [b" " * 60] * 50
    request = request_of(*unread)
    assert refusal(request).status == 413
    assert asyncio.run(read_json(request_of(b"[1]"), None, 3)) == [1]


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x+json"]
)
def test_only_content_types_that_no_page_of_another_origin_can_send_are_read(kind: str) -> None:
    error = refusal(request_of(b"{}", kind=kind))
    assert error.status == 415
    assert "send Content-Type: application/json" in error.message


def test_a_body_is_validated_by_its_model() -> None:
    class Size(BaseModel):
        model_config = ConfigDict(extra="forbid")
        width: int

    kind = "application/problem+json; charset=utf-8"
    assert asyncio.run(read_json(request_of(b'{"width": 64}', kind=kind), Size)) == Size(width=64)
    with pytest.raises(ValidationError):
        asyncio.run(read_json(request_of(b'{"width": "x"}'), Size))
