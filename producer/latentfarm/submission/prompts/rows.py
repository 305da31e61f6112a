"""From a row's fields to a ``Row``, or to a ``Problem`` that says place, field, value and cure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import ValidationError

from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row

#: findings of one row that are told; a row of 1 MiB could have 100,000
_SHOWN_FINDINGS = 8
_SHOWN_VALUE = 60

#: what a row may name; ``columns`` is made here of the columns that it may not
FIELDS = frozenset(Row.model_fields) - {"columns"}

_validate = Row.__pydantic_validator__.validate_python


class LocatedRow(NamedTuple):
    """A good row and its place, such as ``prompts.jsonl line 17``."""

    place: str
    row: Row


@dataclass(frozen=True, slots=True)
class RowError:
    """Something wrong with a row.

    ``text`` says place, field, value and what to write instead. ``reason`` is short and the same for the same fault in
    other rows (``width``, ``unknown field 'widht'``, ``not JSON``), to count by.
    """

    text: str
    reason: str


ParsedRow = LocatedRow | RowError


@dataclass(frozen=True)
class ReadOptions:
    """How prompts are read.

    ``prompt_column`` is the column (or JSON field) that holds the prompt, instead of ``prompt``. ``keep_columns``
    carries unknown columns through to the results instead of refusing them. ``format`` says what a source without a
    telling name holds: ``txt``, ``jsonl``, ``csv``, ``tsv`` or ``parquet``, and each with ``.gz``.
    """

    prompt_column: str | None = None
    keep_columns: bool = False
    format: str | None = None


class RowCheck:
    """Checks rows as the options say; one for a whole source, any number of rows."""

    def __init__(self, options: ReadOptions) -> None:
        self.keep_columns = options.keep_columns
        self.prompt_column = options.prompt_column or "prompt"
        #: whether the fields of a row are its columns as they stand
        self.direct = not options.keep_columns and self.prompt_column == "prompt"
        self._field_of = {name: name for name in FIELDS if name != "prompt"} | {self.prompt_column: "prompt"}

    def field(self, column: str) -> str | None:
        """Return the field that a column stands for; None where it is an unknown column."""
        return self._field_of.get(column)

    def row(self, place: str, fields: Mapping[str, Any]) -> ParsedRow:
        """Check a row whose keys are columns; a value of None says "not given"."""
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
        """Check a row's ``own`` fields and keep or refuse its ``foreign`` columns.

        ``labels`` says what the user calls a field, where that is not its name.
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
            return _problem([*_findings(error, place, Row, labels), *unknown])
        except RecursionError:
            return RowError(f"{place}: a value is nested too deeply; write it flatter", "nested too deeply")
        if unknown:
            return _problem(unknown)
        if not row.prompt or row.prompt.isspace():
            label = labels.get("prompt", "prompt")
            return RowError(f"{place}: {label} '' is empty; write what the picture shows", "prompt is empty")
        return LocatedRow(place, row)

    def _unknown(self, place: str, column: str, value: object) -> tuple[str, str]:
        return f"unknown field {shown(column)}", f"{place}: field {shown(column)} ({shown(value)}) {self.cure(column)}"

    def cure(self, column: str) -> str:
        """Say what to do about an unknown column."""
        known = sorted(self._field_of)
        close = get_close_matches(column, known, n=1) if len(column) <= _SHOWN_VALUE else []
        other = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(known)}."
        return f"is not known; {other} --keep-columns would carry it through to the results"


def check_defaults(fields: dict[str, Any]) -> Defaults:
    """Return a batch's defaults.

    Raises:
        InputError: a value is not allowed.
    """
    try:
        return Defaults(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise InputError("\n".join(text for _, text in _findings(error, "options", Defaults, {}))) from None


def shown(value: object) -> str:
    """Return a value as messages show it, cut where it is long."""
    try:
        text = (
            repr(value[: _SHOWN_VALUE + 1])
            if isinstance(value, str)
            else json.dumps(value, ensure_ascii=False, default=str)
        )
    except (ValueError, TypeError, RecursionError):
        text = type(value).__name__
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _SHOWN_VALUE else f"{text[: _SHOWN_VALUE - 3]}..."


def wrong_value(error: ValidationError) -> str:
    """Say of a single wrong value what it is and what to write, without place and field."""
    finding = error.errors(include_url=False)[0]
    return _said(finding["type"], finding["input"], finding)


def _problem(findings: list[tuple[str, str]]) -> RowError:
    texts = [text for _, text in findings[:_SHOWN_FINDINGS]]
    if len(findings) > _SHOWN_FINDINGS:
        texts.append(f"... and {len(findings) - _SHOWN_FINDINGS} more in this row")
    return RowError("\n".join(texts), findings[0][0])


def _findings(
    error: ValidationError, place: str, model: type[Defaults], labels: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Turn pydantic's findings into pairs: the reason, and a sentence of place, field, value and cure."""
    for finding in error.errors(include_url=False):
        field = str(finding["loc"][0]) if finding["loc"] else "row"
        label = labels.get(field, field)
        value, kind = finding["input"], finding["type"]
        if kind == "extra_forbidden":
            close = get_close_matches(field, model.model_fields, n=1)
            cure = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(sorted(model.model_fields))}"
            yield (
                f"unknown field {shown(field)}",
                f"{place}: field {shown(field)} ({shown(value)}) is not known; {cure}",
            )
        elif kind == "missing":
            yield f"{field} is missing", f'{place}: {label} is missing; write "{label}": "..."'
        else:
            yield field, f"{place}: {label} {_said(kind, value, finding)}"


def _said(kind: str, value: object, finding: Any) -> str:
    if kind == "value_error":
        return f"{shown(value)} {finding['ctx']['error']}"
    message = finding["msg"].partition(", unable to")[0]
    return f"{shown(value)} is wrong; {(message[0].lower() + message[1:]).replace('input should be', 'write')}"
