"""CSV and TSV tables with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

from pydantic_core import from_json

from latentfarm.errors import InputError
from latentfarm.submission.prompts.lines import (
    MAX_LINE_BYTES,
    MAX_SKIPPED_BYTES,
    Lines,
    line_too_long_error,
    no_rows_error,
    not_utf8_error,
)
from latentfarm.submission.prompts.rows import ParsedRow, RowCheck, RowError, abbreviate


def read_table(stream: BinaryIO, name: str, check: RowCheck, *, delimiter: str) -> Iterator[ParsedRow]:
    """Yield the rows of a table. A row's place is its first line; an empty cell is a missing field.

    Raises:
        InputError: the stream is not text, or the header is invalid.
    """
    lines = _LineReader(iter(Lines(stream, name)), name)
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place = lines.begin_record()
        try:
            cells = next(records, None)
        except UnicodeDecodeError as error:
            yield _or_raise(not_utf8_error(lines.place, error), header)
            continue
        except csv.Error as error:
            text = f"{place}: {error}; close the double quotes, and double those inside a cell"
            yield _or_raise(RowError(text, "not CSV"), header)
            continue
        if cells is None:
            return
        if not cells:
            continue
        lines.end_skipped()
        if header is None:
            header = check_header([cell.strip() for cell in cells], name, check, delimiter=delimiter)
        elif len(cells) != len(header):
            yield _ragged(place, len(cells), len(header))
        else:
            yield _row(place, header, cells, check)


def check_header(columns: list[str], name: str, check: RowCheck, *, delimiter: str | None = None) -> list[str]:
    """Return the columns of a table.

    Args:
        columns: the columns' names.
        name: the source's name, for messages.
        check: knows which columns are fields.
        delimiter: that of CSV or TSV, to notice another one.

    Raises:
        InputError: a column has no name, occurs twice or is unknown, or there is no prompt column.
    """
    for number, column in enumerate(columns, start=1):
        if not column:
            raise InputError(f"{name}: column {number} of the header has no name; name it")
        if column in columns[: number - 1]:
            raise InputError(f"{name}: the header has column {abbreviate(column)} twice; rename one")
    if check.names.prompt_name(columns) is None:
        known = ", ".join(abbreviate(column) for column in columns[:20])
        cure = "name the column of prompts with --prompt-column"
        if delimiter and len(columns) == 1 and any(other in columns[0] for other in ";,\t|"):
            cure = f"separate columns with {'commas' if delimiter == ',' else 'tabs'}"
        raise InputError(f"{name}: the header has no column {check.prompt_column!r}, only {known}; {cure}")
    for column in check.names.unknown(columns):
        if not check.keep:
            raise InputError(f"{name}: column {abbreviate(column)} {check.names.cure(column)}")
    return columns


def _row(place: str, header: list[str], cells: list[str], check: RowCheck) -> ParsedRow:
    fields: dict[str, Any] = {}
    for column, cell in zip(header, cells, strict=True):
        if not cell and check.field(column) not in {None, "prompt"}:
            fields[column] = None
        elif check.field(column) == "scheduler_options":
            try:
                fields[column] = from_json(cell, allow_inf_nan=False)
            except ValueError:
                example = '{"use_karras_sigmas": true}'
                text = f"{place}: {column} {abbreviate(cell)} is not JSON; write an object such as {example}"
                return RowError(text, "scheduler_options")
        else:
            fields[column] = cell
    return check.row(place, fields)


def _ragged(place: str, cells: int, columns: int) -> RowError:
    noun = "cell" if cells == 1 else "cells"
    cure = "write empty cells too" if cells < columns else "put a cell that contains a delimiter in double quotes"
    return RowError(f"{place}: {cells} {noun}, but the header has {columns}; {cure}", "ragged row")


def _or_raise(problem: RowError, header: list[str] | None) -> RowError:
    if header is None:
        # without a header, no row can be read
        raise InputError(problem.text)
    return problem


class _LineReader:
    """Yields lines to ``csv.reader`` and limits the length of a record.

    It is a class because a generator ends at its first exception: after a line that is not UTF-8, the next is read.
    """

    def __init__(self, blocks: Iterator[tuple[int, list[bytes]]], name: str) -> None:
        self._lines = (line for _, lines in blocks for line in lines)
        self._name = name
        self._number = 0
        self._record_bytes = 0
        self._skipped_bytes = 0

    @property
    def place(self) -> str:
        """The place of the last line."""
        return f"{self._name} line {self._number}"

    def begin_record(self) -> str:
        """Start a new record; return its place."""
        self._record_bytes = 0
        return f"{self._name} line {self._number + 1}"

    def end_skipped(self) -> None:
        """Record that the last record was not blank."""
        self._skipped_bytes = 0

    def __iter__(self) -> _LineReader:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._number += 1
        self._record_bytes += len(line) + 1
        self._skipped_bytes += len(line) + 1
        if self._record_bytes > MAX_LINE_BYTES:
            raise line_too_long_error(self.place, "is a double quote not closed?")
        if self._skipped_bytes > MAX_SKIPPED_BYTES:
            raise no_rows_error(self.place)
        return line.decode() + "\n"
