"""Forms as they arrive: in any pieces, and hostile ones."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from latentfarm.server.http.multipart import FormParser, FormPart, base_name
from latentfarm.server.http.request_error import RequestError

pytestmark = pytest.mark.unit

BOUNDARY = "b0undary"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def form(parts: list[tuple[str, bytes]], *, end: str = f"--{BOUNDARY}--\r\n") -> bytes:
    written = [f"--{BOUNDARY}\r\n{headers}\r\n\r\n".encode() + content + b"\r\n" for headers, content in parts]
    return b"".join(written) + end.encode()


def field(name: str, filename: str | None = None) -> str:
    return f'Content-Disposition: form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')


def parse(pieces: list[bytes]) -> list[tuple[FormPart, bytes]]:
    parser = FormParser(TYPE)
    found: list[tuple[FormPart, bytes]] = []
    for piece in pieces:
        for event in parser.feed(piece):
            if isinstance(event, FormPart):
                found.append((event, b""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + event)
    assert parser.ended
    return found


# what a boundary looks like, in pieces
nearly = st.lists(st.sampled_from([b"\r\n", b"--", b"\r", b"\n", BOUNDARY.encode()[:4], b"x", b"\0"])).map(b"".join)


@given(contents=st.lists(st.binary(max_size=40) | nearly, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 400)))
def test_a_form_reads_the_same_however_it_is_cut(contents: list[bytes], cuts: list[int]) -> None:
    assume(not any(f"--{BOUNDARY}".encode() in content for content in contents))
    whole = form([(field(f"f{number}", "a.jsonl"), content) for number, content in enumerate(contents)])
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[start:stop] for start, stop in pairwise(places)]
    parts = parse(pieces)
    assert [content for _, content in parts] == contents
    assert [part.name for part, _ in parts] == [f"f{number}" for number in range(len(contents))]


def test_a_filename_has_no_folders_and_no_control_characters() -> None:
    [(part, _)] = parse([form([(field("file", "../..\\C:\\b\u00e4tch.jsonl"), b"")])])
    assert part.filename == "b\u00e4tch.jsonl"
    assert base_name("a/..") == base_name("") == "file"
    assert base_name("a\x00\x1b\u202eb") == "ab"
    assert len(base_name("x" * 10_000)) == 255


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (form([("X: " + "a" * 5_000, b"")]), "header size"),
        (form([("\r\n".join(f"X-{number}: a" for number in range(20)), b"")]), "header count"),
        (form([(field("f"), b"")] * 65), "more than 64 parts"),
        (form([("Content-Type: text/plain", b"")]), "Content-Disposition"),
        (form([("Content-Disposition: attachment; name=f", b"")]), "Content-Disposition"),
        (b"--another\r\n", "boundary"),
        (f"--{BOUNDARY}\r\nno header\r\n\r\n".encode(), "character"),
    ],
)
def test_a_hostile_form_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        FormParser(TYPE).feed(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 415),
        ("", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        (f"multipart/form-data; boundary={'b' * 5_000}", 400),
    ],
)
def test_another_content_type_is_refused(content_type: str, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        FormParser(content_type)
    assert caught.value.status == status


@given(st.binary(max_size=400))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    parser = FormParser(TYPE)
    with suppress(RequestError):
        parser.feed(f"--{BOUNDARY}\r\n".encode() + body)
        parser.feed(body)
