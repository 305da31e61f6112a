"""JSON documents: a list of prompts or objects, an object of them by id, or one object that is a row."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from latentfarm.errors import InputError
from latentfarm.submission.prompts.aliases import normalize
from latentfarm.submission.prompts.json_document import Entry, JsonDocument
from latentfarm.submission.prompts.jsonl import check_value, read_jsonl
from latentfarm.submission.prompts.lines import checked_start, read_blocks
from latentfarm.submission.prompts.rows import ParsedRow, RowCheck, RowError, abbreviate

#: bytes of a document, which is in memory as a whole
MAX_DOCUMENT_BYTES = 64 * 2**20

#: keys of an object whose list has the rows
_WRAPPERS = frozenset(
    {
        "captions",
        "data",
        "entries",
        "examples",
        "items",
        "prompt",
        "prompts",
        "records",
        "rows",
        "samples",
        "texts",
    }
)
_KINDS = {b"{": "object", b"[": "list", b'"': "text"}
_LISTED_KEYS = 10
_LINE_END = re.compile(rb"[\r\n]")
_CURE = 'write a list such as [{"prompt": "a cat"}], or an object of prompts by id'


def read_json(stream: BinaryIO, name: str, check: RowCheck) -> Iterator[ParsedRow]:
    """Yield the rows of a JSON document. Places count entries from 1. JSON lines are read as such.

    The structure of the whole document is checked before the first row.

    Raises:
        InputError: the stream is not JSON, is larger than 64 MiB, or has no rows in a known layout.
    """
    document = JsonDocument(_content(stream, name), name)
    opening = document.opening(document.start)
    if not opening:
        return
    if opening == b"[":
        end = _check_list(document)
    elif opening in _KINDS:
        end = document.end_of_value(document.start, limited=False)
    else:
        raise document.error(document.start, f"this is not a list or an object; {_CURE}")
    after = document.skip_space(end)
    if document.opening(after) in {b"{", b'"'} and opening != b"[" and _LINE_END.search(document.content, end, after):
        yield from _several(document, check, end)
    elif document.opening(after):
        raise document.error(after, "there is text after the document's end; remove it, or write one list")
    elif opening == b"{":
        yield from _object(document, check, end)
    elif opening == b"[":
        yield from _list(document, check, document.start)
    else:
        yield _row(document, check, Entry(1, None, document.start, end))


def _several(document: JsonDocument, check: RowCheck, end: int) -> Iterator[ParsedRow]:
    """Yield the rows of JSON lines, or of objects laid out over several lines. ``end`` is that of the first."""
    if not _LINE_END.search(document.content, document.start, end):
        check.notes.add("the file has JSON lines: a row on each line")
        yield from read_jsonl(io.BytesIO(document.content), document.name, check)
        return
    check.notes.add("the file has several JSON documents: a row each")
    # the whole structure is checked before the first row
    for _ in document.values():
        pass
    for entry in document.values():
        yield _row(document, check, entry)


def _content(stream: BinaryIO, name: str) -> bytes:
    content = bytearray()
    for block in read_blocks(stream, name):
        content += block if content else checked_start(block, name)
        if len(content) > MAX_DOCUMENT_BYTES:
            cure = "write JSON lines, an object a line, and read them with --format jsonl"
            raise InputError(f"{name} is longer than {MAX_DOCUMENT_BYTES:,} bytes; {cure}")
    return bytes(content)


def _check_list(document: JsonDocument) -> int:
    """Check the structure of a list that is the document; return its end."""
    end = document.start + 1
    for entry in document.entries(document.start):
        end = entry.end
    return document.skip_space(end) + 1


def _list(document: JsonDocument, check: RowCheck, start: int) -> Iterator[ParsedRow]:
    for entry in document.entries(start):
        yield _row(document, check, entry)


def _row(document: JsonDocument, check: RowCheck, entry: Entry) -> ParsedRow:
    place = f"{document.name} entry {entry.number}"
    if entry.key is not None:
        place = f"{place} ({abbreviate(entry.key)})"
    value = document.value(place, entry)
    return value if isinstance(value, RowError) else check_value(place, check, value, key=entry.key)


@dataclass
class _Layout:
    """What the members of the document's object are.

    Attributes:
        kinds: the kinds of their values.
        keys: the first keys.
        lists: the first two members that are lists.
        fields: the first keys that are fields or are passed over.
        rest: the first keys that are not ``lists``.
        prompt: the kind of the prompt's value, if a key means the prompt.
        weak: whether no key is the prompt's own name.
        unknown: whether a key is not known.
    """

    kinds: set[str] = field(default_factory=set)
    keys: list[str] = field(default_factory=list)
    lists: list[Entry] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    prompt: str | None = None
    weak: bool = True
    unknown: bool = False

    @property
    def is_row(self) -> bool:
        """Whether the object itself is a row; a row without a prompt is reported as such."""
        if {"custom_id", "body"} <= set(self.keys):
            return True
        if self.prompt == "text" and not (self.weak and self.unknown):
            return True
        return not self.unknown and self.prompt is None and self.kinds != {"object"} and "list" not in self.kinds

    @property
    def is_by_column(self) -> bool:
        """Whether the members are the columns of a table."""
        return self.prompt is not None and not self.weak and self.kinds <= {"list", "object"}


def _object(document: JsonDocument, check: RowCheck, end: int) -> Iterator[ParsedRow]:
    layout = _layout(document, check)
    if not layout.keys:
        return
    if {"nodes", "links"} <= set(layout.keys):
        raise _workflow(document)
    if layout.is_row:
        yield _row(document, check, Entry(1, None, document.start, end))
    elif layout.lists:
        wrapped = _wrapped(document, check, layout)
        yield from _list(document, check, wrapped.start)
    elif layout.is_by_column:
        raise _no_rows(document, layout)
    elif layout.kinds == {"object"} or (layout.kinds == {"text"} and not layout.fields):
        yield from _by_id(document, check)
    else:
        raise _no_rows(document, layout)


def _layout(document: JsonDocument, check: RowCheck) -> _Layout:
    found = _Layout()
    for entry in document.entries(document.start, limited=False):
        key = entry.key or ""
        kind = _KINDS.get(document.opening(entry.start), "number")
        found.kinds.add(kind)
        if kind == "list":
            found.lists = [*found.lists, entry][:2]
        else:
            found.rest = [*found.rest, key][:_LISTED_KEYS]
        found.keys = [*found.keys, key] if len(found.keys) < _LISTED_KEYS else found.keys
        meaning = check.names.meaning(key)
        if meaning is None:
            found.unknown = True
        elif meaning.field == "prompt":
            if found.prompt is None or not meaning.weak:
                found.prompt, found.weak = kind, meaning.weak
        else:
            found.fields = [*found.fields, key][:_LISTED_KEYS]
    return found


def _wrapped(document: JsonDocument, check: RowCheck, layout: _Layout) -> Entry:
    """Return the only list of an object.

    Raises:
        InputError: it has another list, the list has an unknown name, or the object sets fields.
    """
    wrapped, *others = layout.lists
    if others or normalize(wrapped.key or "") not in _WRAPPERS:
        raise _no_rows(document, layout)
    for key in layout.fields:
        if check.field(key):
            problem = f"{abbreviate(key)} beside the list {abbreviate(wrapped.key)} is not read"
            raise InputError(f"{document.name}: {problem}; write it into each entry, or as an option of the command")
    check.notes.add(f"the rows are the list {abbreviate(wrapped.key)} of the object")
    for key in layout.rest:
        check.notes.add(f"{abbreviate(key)} beside the list is passed over")
    return wrapped


def _by_id(document: JsonDocument, check: RowCheck) -> Iterator[ParsedRow]:
    for entry in document.entries(document.start):
        if entry.number == 1:
            value: Any = document.value(document.name, entry)
            if isinstance(value, dict) and {"class_type", "inputs"} <= value.keys():
                raise _workflow(document)
        check.notes.add("the keys of the object are read as id")
        yield _row(document, check, entry)


def _workflow(document: JsonDocument) -> InputError:
    return InputError(f"{document.name} is a workflow of ComfyUI, not a list of prompts; {_CURE}")


def _no_rows(document: JsonDocument, layout: _Layout) -> InputError:
    if b'"class_type"' in document.content:
        return _workflow(document)
    keys = ", ".join(abbreviate(key) for key in layout.keys)
    if layout.is_by_column:
        cure = 'write a list with an object for each row; pandas does with orient="records"'
        return InputError(f"{document.name} is a table by columns ({keys}); {cure}")
    return InputError(f"{document.name}: an object with the keys {keys} is not a row and has no list of rows; {_CURE}")
