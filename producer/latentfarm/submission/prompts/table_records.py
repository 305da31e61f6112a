"""Records of CSV and TSV: the cells of a row, whose quoted cells may go over several lines.

CSV is read as RFC 4180 has it. TSV has two dialects. Most tools write cells as they are, so a double quote is text;
pandas and spreadsheets write cells with a quote, a tab or a line end in double quotes. A line that has as many cells as
the header is read as the first, but a cell that is wholly a quoted cell is read without its quotes. Other lines, and
those with a quoted cell that ends on a later line, are read as the second.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from latentfarm.submission.prompts.lines import (
    MAX_LINE_BYTES,
    MAX_SKIPPED_BYTES,
    Lines,
    line_too_long_error,
    no_rows_error,
    not_utf8_error,
    stray_line_end,
)
from latentfarm.submission.prompts.notes import Notes
from latentfarm.submission.prompts.rows import RowError

_TAB = "\t"
_QUOTED = re.compile(r'"((?:[^"]|"")*+)"')
#: a quoted cell without its end, which may be in a later cell or line
_OPEN = re.compile(r'"(?:[^"]|"")*+')


class RecordError(Exception):
    """A record cannot be read: (its ``RowError``)."""


class LineReader:
    """Yields lines with their ends to ``csv.reader`` and limits the length of a record.

    It is a class because a generator ends at its first exception: after a line that is not UTF-8, the next is read.
    """

    def __init__(self, lines: Lines, name: str) -> None:
        self._blocks = lines
        self._lines = (line for _, block in lines for line in block)
        self._name = name
        self._number = 0
        self._record: list[bytes] = []
        self._unread: list[bytes] = []
        self._record_bytes = 0
        self._skipped_bytes = 0

    @property
    def place(self) -> str:
        """The place of the last line."""
        return f"{self._name} line {self._number}"

    @property
    def is_too_long(self) -> bool:
        """Whether the record is over the limit."""
        return self._record_bytes > MAX_LINE_BYTES

    def begin_record(self) -> str:
        """Start a new record; return its place."""
        self._record_bytes = 0
        self._record.clear()
        return f"{self._name} line {self._number + 1}"

    def end_skipped(self) -> None:
        """Record that the last record was not blank."""
        self._skipped_bytes = 0

    def later_lines(self) -> list[bytes]:
        """Return the lines of the record after its first."""
        return self._record[1:]

    def unread(self) -> None:
        """Put the lines of the record after its first back."""
        later = self.later_lines()
        self._unread.extend(reversed(later))
        self._number -= len(later)
        del self._record[1:]

    def __iter__(self) -> LineReader:
        return self

    def __next__(self) -> str:
        line = self._unread.pop() if self._unread else next(self._lines)
        self._number += 1
        self._record.append(line)
        self._record_bytes += len(line) + 1
        self._skipped_bytes += len(line) + 1
        if self._skipped_bytes > MAX_SKIPPED_BYTES:
            raise no_rows_error(self.place)
        return (line + self._blocks.end).decode()


class Records:
    """The records of a table.

    Attributes:
        delimiter: what separates cells.
        widths: the numbers of cells that a row may have, once the header is known.
    """

    def __init__(self, lines: LineReader, delimiter: str, notes: Notes) -> None:
        self.delimiter = delimiter
        self.widths: range | None = None
        self._lines = lines
        self._notes = notes
        # whether a cell had a quote as tools write it that do not quote
        self._unquoted = False

    def read(self) -> tuple[str, list[str]] | None:
        """Return the place and the cells of the next record, no cells for a blank line; None at the end.

        Raises:
            RecordError: the record cannot be read; the next one may be.
            InputError: the record is too long.
        """
        place = self._lines.begin_record()
        try:
            first = next(self._lines, None)
            if first is None:
                return None
            return place, self.split(place, first)
        except UnicodeDecodeError as error:
            raise RecordError(not_utf8_error(self._lines.place, error)) from None

    def read_first(self) -> tuple[str, str] | None:
        """Return the place and the first line of the next record that is not blank; None at the end. See ``read``."""
        while True:
            place = self._lines.begin_record()
            try:
                line = next(self._lines, None)
            except UnicodeDecodeError as error:
                raise RecordError(not_utf8_error(self._lines.place, error)) from None
            if line is None or line.rstrip("\r\n"):
                return None if line is None else (place, line)

    def try_split(self, place: str, first: str, delimiter: str) -> list[str] | RowError:
        """Return the cells with this delimiter, or the error; go back to the record's first line."""
        before, self.delimiter = self.delimiter, delimiter
        try:
            return self.split(place, first)
        except RecordError as error:
            problem: RowError = error.args[0]
            return problem
        finally:
            self._lines.unread()
            self.delimiter = before

    def split(self, place: str, first: str) -> list[str]:
        """Return the cells of the record that begins with this line; see ``read``."""
        line = first.rstrip("\r\n")
        if not line:
            return []
        if '"' not in line:
            if stray := ("\r" in line or "\n" in line) and stray_line_end(line):
                raise RecordError(RowError(f"{place}: {stray}", "line ends"))
            return line.split(self.delimiter)
        if self.delimiter == _TAB and self.widths is not None:
            return self._tab_separated(first, line.split(_TAB), self.widths)
        try:
            return self._quoted(first, limited=False)
        except csv.Error as error:
            if self.widths is None and (names := self._names(line)):
                self._lines.unread()
                return names
            cure = "close the double quotes, and double those inside a cell"
            if "new-line character" in str(error):
                raise RecordError(RowError(f"{place}: {stray_line_end(line) or cure}", "line ends")) from None
            raise RecordError(RowError(f"{place}: {error}; {cure}", "not CSV")) from None

    def _tab_separated(self, first: str, cells: list[str], widths: range) -> list[str]:
        fits = len(cells) in widths
        if any(_OPEN.fullmatch(cell) for cell in cells):
            quoted = self._over_lines(first)
            if quoted is not None and len(quoted) in widths and not (fits and self._unquoted):
                if fits:
                    self._check_lines(widths)
                return quoted
            self._lines.unread()
        return self._as_written(cells) if fits else cells

    def _check_lines(self, widths: range) -> None:
        """Note a record of several lines, each of which might be a record.

        Raises:
            RecordError: so it is, in a table of several columns. Text has tabs at these places by chance only.
        """
        later = self._lines.later_lines()
        if all(line.count(b"\t") + 1 in widths for line in later):
            if widths[0] > 1:
                self._lines.unread()
                ending = f"the double quote that begins a cell may end {len(later)} lines below"
                cure = "double the quotes inside cells, and put such cells in double quotes"
                raise RecordError(RowError(f"{self._lines.place}: {ending}; {cure}", "double quotes"))
            self._notes.add("a cell in double quotes goes over several lines")

    def _names(self, line: str) -> list[str]:
        """Return the names of a header that has space around quoted names, or nothing."""
        cells = [cell.strip() for cell in line.split(self.delimiter)]
        quoted = [_QUOTED.fullmatch(cell) for cell in cells]
        if any('"' in cell and found is None for cell, found in zip(cells, quoted, strict=True)):
            return []
        return [cell if found is None else found[1] for cell, found in zip(cells, quoted, strict=True)]

    def _over_lines(self, first: str) -> list[str] | None:
        """Return the cells of a record whose quoted cells may have tabs and line ends, or None."""
        try:
            return self._quoted(first, limited=True)
        except (csv.Error, UnicodeDecodeError):
            return None

    def _quoted(self, first: str, *, limited: bool) -> list[str]:
        return next(csv.reader(self._record(first, limited=limited), delimiter=self.delimiter, strict=True))

    def _record(self, first: str, *, limited: bool) -> Iterator[str]:
        yield first
        for line in self._lines:
            if self._lines.is_too_long:
                if limited:
                    raise csv.Error("too long")
                raise line_too_long_error(self._lines.place, "is a double quote not closed?")
            yield line

    def _as_written(self, cells: list[str]) -> list[str]:
        """Return the texts of cells: without the quotes of those that are quoted cells."""
        quoted = [_QUOTED.fullmatch(cell) for cell in cells]
        literal = [cell for cell, found in zip(cells, quoted, strict=True) if '"' in cell and found is None]
        self._unquoted = self._unquoted or bool(literal)
        if any(cell.startswith('"') for cell in literal):
            self._notes.add("a cell that begins with a double quote, but is no quoted cell, is kept as written")
        if any(found and found[1] and '"' not in found[1] for found in quoted):
            self._notes.add("a cell that is wholly in double quotes is read without them")
        return [
            cell if found is None else found[1].replace('""', '"') for cell, found in zip(cells, quoted, strict=True)
        ]
