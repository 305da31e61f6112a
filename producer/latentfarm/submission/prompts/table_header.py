"""The header of a table: which column is which field, and which are passed over."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from latentfarm.errors import InputError
from latentfarm.submission.prompts.rows import ParsedRow, RowCheck, RowError, abbreviate

#: what pandas calls the column of its index, in CSV and in parquet
_INDEX_NAMES = frozenset({"Unnamed: 0", "__index_level_0__"})
_NUMBER = re.compile(r"\s*[-+]?\d*[.,]?\d+\s*")
_LISTED_COLUMNS = 20


#: returns the value of a cell: of a column, its field as ``RowCheck.field`` returns it, and the cell
Convert = Callable[[str, str | None, Any], Any]


class CellError(Exception):
    """A row does not fit its header, or a cell is invalid: (problem and cure, reason)."""


@dataclass(frozen=True)
class Header:
    """The columns of a table.

    Attributes:
        columns: the columns that are read; an index column of pandas is not one.
        prompt: the column of the prompt.
        index: the place of an index column, or None.
        index_name: its name; empty if it has none, so its cells must show that it is an index.
        unnamed: how many columns after the last have no name.
        chosen: whether the prompt's column was chosen because it is the only one without a meaning.
    """

    columns: tuple[str, ...]
    prompt: str
    index: int | None = None
    index_name: str = ""
    unnamed: int = 0
    chosen: bool = False

    @property
    def width(self) -> int:
        """How many cells a row has, without those of unnamed columns at its end."""
        return len(self.columns) + (self.index is not None)

    @property
    def widths(self) -> range:
        """The numbers of cells that a row may have."""
        return range(self.width, self.width + self.unnamed + 1)

    def row(self, place: str, cells: Sequence[Any], check: RowCheck, convert: Convert) -> ParsedRow:
        """Check a row.

        Args:
            place: the row's place, for messages.
            cells: its cells.
            check: checks the row.
            convert: returns the value of a cell in a column, by the column's field; raises CellError.
        """
        try:
            found = self._fields(cells, check)
            values = {column: convert(column, check.field(column), cell) for column, cell in found.items()}
        except CellError as error:
            text, reason = error.args
            return RowError(f"{place}: {text}", reason)
        return check.row(place, values)

    def _fields(self, cells: Sequence[Any], check: RowCheck) -> dict[str, Any]:
        """Return the cells of a row by column; note what is passed over.

        Raises:
            CellError: a cell would be lost, or the chosen column has numbers.
        """
        named = list(cells[: self.width])
        if extra := [cell for cell in cells[self.width :] if cell]:
            raise CellError(
                f"{abbreviate(extra[0])} is in a column without a name; name it in the header", "unnamed column"
            )
        if self.unnamed:
            check.notes.add("the empty cells of the last column, which has no name, are passed over")
        if self.index is not None:
            index = named.pop(self.index)
            if not self.index_name and not str(index).isdecimal():
                raise CellError(
                    f"{abbreviate(index)} is in a column without a name; name it in the header", "unnamed column"
                )
            check.notes.add(f"{self._index_label} is passed over: it is the index of pandas")
        found = dict(zip(self.columns, named, strict=True))
        if self.chosen:
            self._choose(found, check)
        return found

    @property
    def _index_label(self) -> str:
        return f"column {self.index_name!r}" if self.index_name else "the first column, which has no name,"

    def _choose(self, found: dict[str, Any], check: RowCheck) -> None:
        """Rename the chosen column."""
        value = found.pop(self.prompt)
        # an exception stands for a value that cannot be read, and is reported as such
        if value is not None and (not isinstance(value, str | bytes | Exception) or _is_number(value)):
            cure = "name the column of prompts with --prompt-column"
            raise CellError(f"column {abbreviate(self.prompt)} has {abbreviate(value)}, not a text; {cure}", "prompt")
        check.notes.add(f"{abbreviate(self.prompt)} is read as prompt: it is the only column without another meaning")
        found[check.prompt_column] = value


def check_header(names: Sequence[str], name: str, check: RowCheck, *, text: bool = True) -> Header:
    """Return the columns of a table.

    Args:
        names: the columns' names.
        name: the source's name, for messages.
        check: knows which columns are fields.
        text: whether the table is text, whose columns may lack a name.

    Raises:
        InputError: a column has no name, occurs twice or is unknown, or there is no prompt column.
    """
    columns = list(names)
    unnamed = 0
    while text and len(columns) > 1 and not columns[-1]:
        columns.pop()
        unnamed += 1
    index = _index(columns, check, text=text)
    index_name = "" if index is None else columns.pop(index)
    for number, column in enumerate(columns, start=1):
        if not column:
            number_in_file = number + (index is not None and index < number)
            raise InputError(f"{name}: column {number_in_file} of the header has no name; name it")
        if column in columns[: number - 1]:
            raise InputError(f"{name}: the header has column {abbreviate(column)} twice; rename one")
    prompt, chosen = check.names.prompt_name(columns), False
    if prompt is None:
        prompt, chosen = _only_unknown(columns, check), True
    if prompt is None:
        raise _no_prompt(columns, name, check)
    for column in check.names.unknown(columns):
        if not check.keep and column != prompt:
            raise InputError(f"{name}: column {abbreviate(column)} {check.names.cure(column)}")
    return Header(tuple(columns), prompt, index, index_name, unnamed, chosen)


def _index(columns: Collection[str], check: RowCheck, *, text: bool) -> int | None:
    for number, column in enumerate(columns):
        if number == 0 and text and not column and len(columns) > 1:
            return number
        if column in _INDEX_NAMES and not check.keep and check.field(column) is None:
            return number
    return None


def _only_unknown(columns: Sequence[str], check: RowCheck) -> str | None:
    """Return the only column of several that is neither a field, nor passed over, nor kept."""
    unknown = [column for column in columns if check.field(column) is None]
    named = check.prompt_column != "prompt"
    return unknown[0] if len(columns) > 1 and len(unknown) == 1 and not named and not check.keep else None


def _no_prompt(columns: Sequence[str], name: str, check: RowCheck) -> InputError:
    known = ", ".join(abbreviate(column) for column in columns[:_LISTED_COLUMNS])
    cure = "name the column of prompts with --prompt-column, or write a header as the first line"
    if len(columns) == 1 and any(delimiter in columns[0] for delimiter in ",;|\t"):
        cure = f"separate columns with commas or tabs, as the file's name ends, or {cure}"
    return InputError(f"{name}: the header has no column {check.prompt_column!r}, only {known}; {cure}")


def _is_number(value: object) -> bool:
    return isinstance(value, str) and _NUMBER.fullmatch(value) is not None
