"""Find the entries of a JSON document, each by its place.

The structure of a document shows where an entry ends. So an invalid entry leaves the others readable, and one of many
megabytes, or with a million levels, is refused before it is unpacked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic_core import from_json

from latentfarm.errors import InputError
from latentfarm.submission.prompts.lines import MAX_LINE_BYTES, not_utf8_error
from latentfarm.submission.prompts.rows import RowError, abbreviate
from latentfarm.unique_names import UniqueNames

MAX_DEPTH = 100

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR = re.compile(rb'[^\s,:"\[\]{}]++')
#: what opens or closes a level; strings, because brackets in them do not; a quote that opens no string
_TOKEN = re.compile(rb'[\[\]{}]|"[^"\\]*+(?:\\.[^"\\]*+)*+"|"', re.DOTALL)
_AT = re.compile(r" at line (\d+) column (\d+)$")
_CLOSING = {b"[": b"]", b"{": b"}"}


class Entry(NamedTuple):
    """An entry of a list, or of an object with its key: the bytes of its value."""

    number: int
    key: str | None
    start: int
    end: int


class JsonDocument:
    """The bytes of a JSON document."""

    def __init__(self, content: bytes, name: str) -> None:
        self.content = content
        self.name = name
        self.start = self.skip_space(0)

    def opening(self, at: int) -> bytes:
        """Return the first byte of a value; nothing at the end of the document."""
        return self.content[at : at + 1]

    def skip_space(self, at: int) -> int:
        """Return the place of the next byte that is not white space."""
        found = _SPACE.match(self.content, at)
        return found.end() if found else at

    def place(self, at: int) -> str:
        """Return line and column of a byte."""
        line = self.content.count(b"\n", 0, at) + 1
        before = self.content[self.content.rfind(b"\n", 0, at) + 1 : at]
        return f"line {line} column {len(before.decode(errors='replace')) + 1}"

    def error(self, at: int, problem: str) -> InputError:
        """Return the error of a document that is not JSON."""
        return InputError(f"{self.name} {self.place(at)}: {problem}")

    def end_of_value(self, start: int, *, limited: bool = True) -> int:
        """Return the end of a value.

        Raises:
            InputError: it has no end, more than 100 levels or, if it is limited, more than 1 MiB.
        """
        opening = self.opening(start)
        if opening == b'"':
            found = _STRING.match(self.content, start)
            if found is None:
                raise self.error(start, "the text has no closing double quote; close it")
        elif opening in _CLOSING:
            return self._end_of_levels(start, limited=limited)
        else:
            found = _SCALAR.match(self.content, start)
            if found is None:
                raise self.error(start, f"a value was expected, not {self._seen(start)}; write valid JSON")
        if limited and found.end() - start > MAX_LINE_BYTES:
            raise self._too_long(start)
        return found.end()

    def entries(self, start: int, *, limited: bool = True) -> Iterator[Entry]:
        """Yield the entries of the list or object at this place; see ``end_of_value``.

        Raises:
            InputError: it is not JSON, or a key of an object occurs twice.
        """
        opening = self.opening(start)
        closing = _CLOSING[opening]
        at = self.skip_space(start + 1)
        if self.opening(at) == closing:
            return
        number = 0
        with UniqueNames() as keys:
            while True:
                number += 1
                key = None
                if opening == b"{":
                    key, at = self._key(at, keys, number)
                end = self.end_of_value(at, limited=limited)
                yield Entry(number, key, at, end)
                at = self.skip_space(end)
                if self.opening(at) == closing:
                    return
                if self.opening(at) != b",":
                    expected = f"',' or '{closing.decode()}'"
                    raise self.error(at, f"{expected} was expected, not {self._seen(at)}; write valid JSON")
                at = self.skip_space(at + 1)
                if self.opening(at) == closing:
                    raise self.error(at, "the last entry ends with a comma; remove the comma")

    def values(self) -> Iterator[Entry]:
        """Yield the values of the document, which follow each other without commas; see ``end_of_value``."""
        number, at = 0, self.start
        while self.opening(at):
            number += 1
            end = self.end_of_value(at)
            yield Entry(number, None, at, end)
            at = self.skip_space(end)

    def value(self, place: str, entry: Entry) -> Any:
        """Return an entry's value, or a ``RowError``."""
        raw = self.content[entry.start : entry.end]
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            return not_utf8_error(place, error)
        try:
            value = from_json(raw, allow_inf_nan=False)
            if isinstance(value, dict):
                json.loads(text, object_pairs_hook=_unique)
        except _RepeatedKeyError as error:
            return RowError(f"{place}: {abbreviate(error.args[0])} is there twice; write it once", "repeated key")
        except ValueError as error:
            reason, at = str(error), entry.start
            if found := _AT.search(reason):
                lines = raw.split(b"\n")[: int(found[1]) - 1]
                at += sum(len(line) + 1 for line in lines) + int(found[2]) - 1
                reason = reason[: found.start()]
            problem = f"{abbreviate(text)} is not JSON ({reason}); correct it"
            return RowError(f"{place} ({self.place(min(at, entry.end))}): {problem}", "not JSON")
        return value

    def _key(self, at: int, keys: UniqueNames, number: int) -> tuple[str, int]:
        """Return a key and the place of its value."""
        if self.opening(at) != b'"':
            raise self.error(at, f"a key in double quotes was expected, not {self._seen(at)}; write valid JSON")
        end = self.end_of_value(at)
        try:
            key = str(from_json(self.content[at:end]))
        except ValueError:
            raise self.error(at, "the key is not valid JSON; correct it") from None
        if first := keys.add(key, str(number)):
            raise self.error(at, f"key {abbreviate(key)} is there twice (entries {first} and {number}); rename one")
        colon = self.skip_space(end)
        if self.opening(colon) != b":":
            raise self.error(colon, f"':' was expected after the key, not {self._seen(colon)}; write valid JSON")
        return key, self.skip_space(colon + 1)

    def _end_of_levels(self, start: int, *, limited: bool) -> int:
        closings: list[bytes] = []
        for token in _TOKEN.finditer(self.content, start):
            if limited and token.end() - start > MAX_LINE_BYTES:
                raise self._too_long(start)
            kind = token[0]
            if kind in _CLOSING:
                closings.append(_CLOSING[kind])
                if len(closings) > MAX_DEPTH:
                    raise self.error(token.start(), f"there are more than {MAX_DEPTH} levels; write it flatter")
            elif kind == b'"':
                raise self.error(token.start(), "the text has no closing double quote; close it")
            elif len(kind) == 1:
                if kind != closings.pop():
                    problem = f"another bracket is open than {self._seen(token.start())} closes"
                    raise self.error(token.start(), f"{problem}; close it first")
                if not closings:
                    return token.end()
        raise self.error(start, f"{self._seen(start)} is not closed; close it, or copy the file again")

    def _too_long(self, start: int) -> InputError:
        return self.error(start, f"the entry is longer than {MAX_LINE_BYTES:,} bytes; write a list of prompts")

    def _seen(self, at: int) -> str:
        if at >= len(self.content):
            return "the end of the file"
        return repr(self.content[at : at + 4].decode(errors="replace")[0])


class _RepeatedKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(key)
        found[key] = value
    return found
