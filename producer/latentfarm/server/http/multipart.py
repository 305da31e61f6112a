"""Reads forms as they arrive: the headers and pieces of each part, never a whole file.

The form is not trusted: the sizes of headers, and the numbers of headers and parts, are bounded, and nothing is written
to disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from latentfarm.server.http.body import body_chunks
from latentfarm.server.http.request_error import RequestError

#: images/edits has up to 16 files and 30 fields
_MAX_PARTS = 64
_MAX_HEADERS, _MAX_HEADER_BYTES = 8, 4_096
_MAX_NAME_CHARACTERS = 255


@dataclass(frozen=True)
class FormPart:
    """The headers of a part. ``filename`` is None for a field that is no file; it never has folders."""

    name: str
    filename: str | None
    content_type: str


FormEvent = FormPart | bytes


class FormParser:
    """Parses a form. Each ``feed`` returns what its bytes have completed: a part's headers, or a piece of its content.

    Args:
        content_type: the request's header.

    Raises:
        RequestError: 415 if it is no form, 400 if it has no boundary.
    """

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            raise RequestError(
                415, "unsupported_media_type", f"the content type is {content_type[:80]!r}; send multipart/form-data"
            )
        if not options.get(b"boundary"):
            raise _invalid("the content type has no boundary")
        self._events: list[FormEvent] = []
        self._parts = 0
        self._field = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        #: whether the end of the form has come
        self.ended = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_field,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_end": self._end,
                },
                max_header_count=_MAX_HEADERS,
                max_header_size=_MAX_HEADER_BYTES,
            )
        except FormParserError as error:
            raise _invalid(str(error)) from None

    def feed(self, data: bytes) -> list[FormEvent]:
        """Return what these bytes complete.

        Raises:
            RequestError: 400, the form is invalid or has too many parts or headers.
        """
        self._events = []
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _invalid(str(error)) from None
        return self._events

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise _invalid(f"it has more than {_MAX_PARTS} parts")
        self._headers = {}

    def _add_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _end_headers(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        if disposition != b"form-data" or b"name" not in options:
            raise _invalid('a part has no header like Content-Disposition: form-data; name="file"')
        filename = options.get(b"filename")
        part = FormPart(
            _text(options[b"name"]),
            None if filename is None else base_name(_text(filename)),
            self._headers.get(b"content-type", b"").decode("latin-1"),
        )
        self._events.append(part)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(data[start:end])

    def _end(self) -> None:
        self.ended = True


async def read_form(request: Request, limit: int) -> AsyncIterator[FormEvent]:
    """Yield the form's parts: the headers of each, then its content in pieces of at most 64 KiB or so.

    Args:
        request: the request.
        limit: bytes of the whole body.

    Raises:
        RequestError: 400, 413 or 415.
    """
    parser = FormParser(request.headers.get("content-type", ""))
    async for chunk in body_chunks(request, limit):
        for event in parser.feed(chunk):
            yield event
    if not parser.ended:
        raise _invalid("it ends before its closing boundary")


def base_name(name: str) -> str:
    """Return a file's name without its folders, at most 255 characters; ``file`` if nothing is left."""
    base = PurePosixPath(PureWindowsPath(name).name).name
    printable = "".join(each for each in base if each.isprintable())[-_MAX_NAME_CHARACTERS:]
    return printable if printable.strip(". ") else "file"


def _text(raw: bytes) -> str:
    """Return a name that browsers and clients encode in UTF-8; other bytes are replaced."""
    return raw.decode("utf-8", "replace")


def _invalid(reason: str) -> RequestError:
    return RequestError(400, "invalid_multipart", f"the form is invalid: {reason}; send multipart/form-data")
