"""Turn a row's fields into a ``Row``, or into a ``RowError`` with place, field, value and cure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row

#: errors listed for one row; a row of 1 MiB could have 100,000
_MAX_ERRORS = 8
_MAX_VALUE_CHARACTERS = 60

#: fields that a row may set; ``columns`` is filled by ``ReadOptions.keep_columns`` only
FIELDS = frozenset(Row.model_fields) - {"columns"}

_validate = Row.__pydantic_validator__.validate_python


class LocatedRow(NamedTuple):
    """A valid row and its place, such as ``prompts.jsonl line 17``."""

    place: str
    row: Row


@dataclass(frozen=True, slots=True)
class RowError:
    """The errors of an invalid row.

    ``text`` has a line per error: place, field, value and cure. ``reason`` groups rows with the same error: ``width``,
    ``unknown field 'widht'``, ``not JSON``.
    """

    text: str
    reason: str


ParsedRow = LocatedRow | RowError


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read.

    ``prompt_column``: the column, or JSON field, of the prompt [default: prompt].
    ``keep_columns``: copy unknown columns to the results. By default they are errors.
    ``format``: txt, jsonl, csv, tsv or parquet, each also with .gz [default: from the source's name].
    """

    prompt_column: str | None = None
    keep_columns: bool = False
    format: str | None = None


class RowCheck:
    """Checks the rows of one source."""

    def __init__(self, options: ReadOptions) -> None:
        self.keep_columns = options.keep_columns
        self.prompt_column = options.prompt_column or "prompt"
        #: whether columns are named like fields, and unknown ones are errors
        self.direct = not options.keep_columns and self.prompt_column == "prompt"
        self._field_of = {name: name for name in FIELDS if name != "prompt"} | {self.prompt_column: "prompt"}

    def field(self, column: str) -> str | None:
        """Return the field of a column, or None for an unknown column."""
        return self._field_of.get(column)

    def row(self, place: str, fields: Mapping[str, Any]) -> ParsedRow:
        """Check a row by its columns. A known column with None is ignored."""
        own: dict[str, Any] = {}
        foreign: dict[str, Any] = {}
        for column, value in fields.items():
            field = self._field_of.get(column)
            if field is None:
                foreign[column] = value
            elif value is not None:
                own[field] = value
        return self.fields(place, own, foreign, labels={"prompt": self.prompt_column})

    def fields(
        self, place: str, own: dict[str, Any], foreign: Mapping[str, Any], *, labels: Mapping[str, str]
    ) -> ParsedRow:
        """Check a row's fields.

        Args:
            place: the row's place, for messages.
            own: values by field.
            foreign: values by unknown column; kept or refused.
            labels: the user's names of fields, where they differ.
        """
        unknown: list[tuple[str, str]] = []
        if foreign and self.keep_columns:
            own["columns"] = {str(column): value for column, value in foreign.items()}
        elif foreign:
            unknown = [
                self._unknown(place, str(column), value) for column, value in foreign.items() if value is not None
            ]
        try:
            row = _validate(own)
        except ValidationError as error:
            return _row_error([*_field_errors(error, place, Row, labels), *unknown])
        except RecursionError:
            return RowError(f"{place}: a value is nested too deeply; write it flatter", "nested too deeply")
        if unknown:
            return _row_error(unknown)
        if not row.prompt or row.prompt.isspace():
            label = labels.get("prompt", "prompt")
            return RowError(f"{place}: {label} '' is empty; describe the image", "prompt is empty")
        return LocatedRow(place, row)

    def _unknown(self, place: str, column: str, value: object) -> tuple[str, str]:
        return (
            f"unknown field {abbreviate(column)}",
            f"{place}: field {abbreviate(column)} ({abbreviate(value)}) {self.cure(column)}",
        )

    def cure(self, column: str) -> str:
        """Return the cure for an unknown column."""
        known = sorted(self._field_of)
        close = get_close_matches(column, known, n=1) if len(column) <= _MAX_VALUE_CHARACTERS else []
        other = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(known)}."
        return f"is not known; {other} Or use --keep-columns to copy it to the results"


def check_defaults(fields: dict[str, Any]) -> Defaults:
    """Return a batch's defaults. Fields with None are not set.

    Raises:
        InputError: a value is invalid.
    """
    try:
        return Defaults(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise InputError("\n".join(text for _, text in _field_errors(error, "options", Defaults, {}))) from None


def abbreviate(value: object) -> str:
    """Return a value as JSON, or a text in quotes, for a message: at most 60 characters."""
    try:
        text = (
            repr(value[: _MAX_VALUE_CHARACTERS + 1])
            if isinstance(value, str)
            else json.dumps(value, ensure_ascii=False, default=str)
        )
    except (ValueError, TypeError, RecursionError):
        text = type(value).__name__
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[: _MAX_VALUE_CHARACTERS - 3]}..."


def describe_invalid(error: ValidationError) -> str:
    """Return value and cure of the first error, without place and field."""
    return _describe(error.errors(include_url=False)[0])


def _row_error(errors: list[tuple[str, str]]) -> RowError:
    texts = [text for _, text in errors[:_MAX_ERRORS]]
    if len(errors) > _MAX_ERRORS:
        texts.append(f"... and {len(errors) - _MAX_ERRORS} more in this row")
    return RowError("\n".join(texts), errors[0][0])


def _field_errors(
    error: ValidationError, place: str, model: type[Defaults], labels: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield reason and text of each error that pydantic found."""
    for found in error.errors(include_url=False):
        field = str(found["loc"][0]) if found["loc"] else "row"
        label = labels.get(field, field)
        if found["type"] == "extra_forbidden":
            name, value = abbreviate(field), abbreviate(found["input"])
            close = get_close_matches(field, model.model_fields, n=1)
            cure = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(sorted(model.model_fields))}"
            yield f"unknown field {name}", f"{place}: field {name} ({value}) is not known; {cure}"
        elif found["type"] == "missing":
            yield f"{field} is missing", f'{place}: {label} is missing; write "{label}": "..."'
        else:
            yield field, f"{place}: {label} {_describe(found)}"


def _describe(found: ErrorDetails) -> str:
    value = abbreviate(found["input"])
    if found["type"] == "value_error":
        return f"{value} {found['ctx']['error']}"
    message = found["msg"].partition(", unable to")[0]
    return f"{value} is invalid; {(message[0].lower() + message[1:]).replace('input should be', 'write')}"
