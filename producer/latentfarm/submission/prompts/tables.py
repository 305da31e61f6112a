"""Tables as text: csv and tsv, the first row being the header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

from pydantic_core import from_json

from latentfarm.errors import InputError
from latentfarm.submission.prompts.lines import (
    MAX_LINE_BYTES,
    MAX_SKIPPED_BYTES,
    no_utf8,
    nothing_there,
    read_lines,
    too_long,
)
from latentfarm.submission.prompts.rows import ParsedRow, RowCheck, RowError, shown


def read_table(stream: BinaryIO, name: str, check: RowCheck, *, delimiter: str) -> Iterator[ParsedRow]:
    """Yield the rows of a table; its place is the line that the row begins on. An empty cell says "not given".

    Raises:
        InputError: the stream cannot be read as lines of text, or the header is wrong.
    """
    feed = _Feed(read_lines(stream, name), name)
    records = csv.reader(feed, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place = feed.begin_record()
        try:
            cells = next(records, None)
        except UnicodeDecodeError as error:
            yield _or_raise(no_utf8(feed.place, error), header)
            continue
        except csv.Error as error:
            text = f"{place}: {error}; close the double quotes, and write one inside of a cell twice"
            yield _or_raise(RowError(text, "not CSV"), header)
            continue
        if cells is None:
            return
        if not cells:
            continue
        feed.end_skipped()
        if header is None:
            header = check_header([cell.strip() for cell in cells], name, check, delimiter=delimiter)
        elif len(cells) != len(header):
            yield _ragged(place, len(cells), len(header))
        else:
            yield _row(place, header, cells, check)


def check_header(columns: list[str], name: str, check: RowCheck, *, delimiter: str | None = None) -> list[str]:
    """Return the columns of a table.

    Raises:
        InputError: one is empty, given twice or unknown, or none is the prompt.
    """
    for number, column in enumerate(columns, start=1):
        if not column:
            raise InputError(f"{name}: column {number} of the header has no name; write one")
        if column in columns[: number - 1]:
            raise InputError(f"{name}: the header names column {shown(column)} twice; rename one")
    if check.prompt_column not in columns:
        known = ", ".join(shown(column) for column in columns[:20])
        cure = "say which one holds the prompts with --prompt-column"
        if delimiter and len(columns) == 1 and any(other in columns[0] for other in ";,\t|"):
            cure = f"separate the columns by {'commas' if delimiter == ',' else 'tabs'}"
        raise InputError(f"{name}: the header names no column {check.prompt_column!r}, but {known}; {cure}")
    if not check.keep_columns:
        for column in columns:
            if check.field(column) is None:
                raise InputError(f"{name}: column {shown(column)} {check.cure(column)}")
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
                text = (
                    f'{place}: {column} {shown(cell)} is no JSON; write an object such as {{"use_karras_sigmas": true}}'
                )
                return RowError(text, "scheduler_options")
        else:
            fields[column] = cell
    return check.row(place, fields)


def _ragged(place: str, cells: int, columns: int) -> RowError:
    noun = "cell" if cells == 1 else "cells"
    cure = "write the empty ones too" if cells < columns else "write one with a delimiter in it in double quotes"
    return RowError(f"{place}: {cells} {noun}, but the header has {columns}; {cure}", "ragged row")


def _or_raise(problem: RowError, header: list[str] | None) -> RowError:
    """Without a header there is no telling what the rows mean."""
    if header is None:
        raise InputError(problem.text)
    return problem


class _Feed:
    """Hands lines to ``csv.reader``, and keeps a record within bounds.

    A class and no generator: after a line that is no UTF-8, it goes on with the next.
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
        """Note that a new record begins with the next line; return its place."""
        self._record_bytes = 0
        return f"{self._name} line {self._number + 1}"

    def end_skipped(self) -> None:
        """Note that a record was not blank."""
        self._skipped_bytes = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._number += 1
        self._record_bytes += len(line) + 1
        self._skipped_bytes += len(line) + 1
        if self._record_bytes > MAX_LINE_BYTES:
            raise InputError(f"{too_long(self.place)} Or is a double quote not closed?")
        if self._skipped_bytes > MAX_SKIPPED_BYTES:
            raise InputError(nothing_there(self.place))
        return line.decode() + "\n"
