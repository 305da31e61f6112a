"""CSV and TSV tables with a header."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from pydantic_core import from_json

from latentfarm.errors import InputError
from latentfarm.submission.prompts.lines import Lines
from latentfarm.submission.prompts.rows import ParsedRow, RowCheck, RowError, abbreviate
from latentfarm.submission.prompts.table_header import CellError, Header, check_header
from latentfarm.submission.prompts.table_records import LineReader, RecordError, Records

_NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}
#: the line with which Excel names the delimiter
_SEPARATOR = re.compile(r'"?sep=(.)"?[,;|\t]*', re.IGNORECASE)


def read_table(stream: BinaryIO, name: str, check: RowCheck, *, delimiter: str) -> Iterator[ParsedRow]:
    """Yield the rows of a table. A row's place is its first line; an empty cell is a missing field.

    Args:
        stream: the table.
        name: the source's name, for messages.
        check: checks the rows.
        delimiter: what separates cells, unless the header shows another one.

    Raises:
        InputError: the stream is not text, or the header is invalid.
    """
    lines = LineReader(Lines(stream, name, quoted=True), name)
    records = Records(lines, delimiter, check.notes)
    try:
        header = _read_header(records, name, check)
    except RecordError as error:
        # without a header, no row can be read
        raise InputError(error.args[0].text) from None
    while header is not None:
        try:
            record = records.read()
        except RecordError as error:
            yield error.args[0]
            continue
        if record is None:
            return
        place, cells = record
        if len(cells) > 1 and not any(cells):
            check.notes.add("rows without any text are passed over")
        elif cells:
            lines.end_skipped()
            yield _row(place, header, cells, check)


def _read_header(records: Records, name: str, check: RowCheck) -> Header | None:
    """Return the header, and choose the delimiter that it shows; None for a table without lines.

    Raises:
        InputError: the header is invalid.
        RecordError: it cannot be read.
    """
    found = records.read_first()
    if found and (named := _SEPARATOR.fullmatch(found[1].strip("\r\n "))):
        if named[1] not in _NAMES:
            raise InputError(f"{name}: the delimiter {named[1]!r} is not supported; save the table with commas")
        if named[1] != records.delimiter:
            records.delimiter = named[1]
            check.notes.add(f"cells are separated by {_NAMES[named[1]]}: the first line names it")
        found = records.read_first()
    if found is None:
        return None
    place, line = found
    if not _has_prompt(records.try_split(place, line, records.delimiter), check):
        fitting = [other for other in _NAMES if _has_prompt(records.try_split(place, line, other), check)]
        if len(fitting) == 1:
            [records.delimiter] = fitting
            check.notes.add(f"cells are separated by {_NAMES[records.delimiter]}, as the header shows")
    header = check_header([cell.strip() for cell in records.split(place, line)], name, check)
    records.widths = header.widths
    return header


def _has_prompt(cells: list[str] | RowError, check: RowCheck) -> bool:
    return isinstance(cells, list) and check.names.prompt_name(cell.strip() for cell in cells) is not None


def _row(place: str, header: Header, cells: Sequence[str], check: RowCheck) -> ParsedRow:
    if len(cells) not in header.widths:
        return _ragged(place, len(cells), header.width)
    return header.row(place, cells, check, _value)


def _value(column: str, field: str | None, cell: str) -> Any:
    """Return the value of a cell; None for an empty one of a field.

    Raises:
        CellError: it is not JSON, but the field is.
    """
    if not cell and field not in {None, "prompt"}:
        return None
    if field != "scheduler_options":
        return cell
    try:
        return from_json(cell, allow_inf_nan=False)
    except ValueError:
        example = '{"use_karras_sigmas": true}'
        text = f"{column} {abbreviate(cell)} is not JSON; write an object such as {example}"
        raise CellError(text, "scheduler_options") from None


def _ragged(place: str, cells: int, columns: int) -> RowError:
    noun = "cell" if cells == 1 else "cells"
    cure = "write empty cells too" if cells < columns else "put a cell that contains a delimiter in double quotes"
    return RowError(f"{place}: {cells} {noun}, but the header has {columns}; {cure}", "ragged row")
