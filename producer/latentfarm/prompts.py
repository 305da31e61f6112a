"""Reading prompt files: ``.txt`` (a prompt a line) and ``.jsonl`` (diffusers' parameter names, a row a line).

A wrong row is never skipped and never guessed at: it becomes a ``Problem`` with place, field, value and cure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from latentfarm.errors import InputError, InvalidRowsError
from latentfarm.job import Defaults, Row

SUFFIXES = (".txt", ".jsonl")
#: wrong rows that are told one by one; the rest is counted
SHOWN_PROBLEMS = 20
_SHOWN_VALUE = 60


@dataclass(frozen=True)
class Problem:
    """Something wrong with a row: ``text`` says place, field, value and what to write instead."""

    text: str


@dataclass(frozen=True)
class PlacedRow:
    """A good row and its place, such as ``prompts.jsonl line 17``."""

    place: str
    row: Row


def read_file(path: Path) -> Iterator[PlacedRow | Problem]:
    """Yield the rows of a prompt file in order, one at a time.

    Raises:
        InputError: the file cannot be read or is of no known kind.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: a prompt file ends in {' or '.join(SUFFIXES)}")
    parse = _parse_txt if path.suffix == ".txt" else _parse_jsonl
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                found = _parse_line(parse, f"{path.name} line {number}", raw, first=number == 1)
                if found is not None:
                    yield found
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_rows(rows: Iterable[str | dict[str, Any]]) -> Iterator[PlacedRow | Problem]:
    """Yield rows given in Python: a prompt, or a dictionary in diffusers' parameter names."""
    for number, row in enumerate(rows, start=1):
        yield _check(f"row {number}", {"prompt": row} if isinstance(row, str) else row)


def check_all(rows: Iterable[PlacedRow | Problem], *, where: str) -> int:
    """Read every row and return how many there are.

    Raises:
        InvalidRowsError: some rows are wrong.
        InputError: there is no row at all.
    """
    shown: list[str] = []
    wrong = good = 0
    for row in rows:
        if isinstance(row, PlacedRow):
            good += 1
        else:
            wrong += 1
            if wrong <= SHOWN_PROBLEMS:
                shown.append(row.text)
    if wrong:
        raise InvalidRowsError(shown, wrong)
    if not good:
        raise InputError(f"{where} holds no prompt; write one a line")
    return good


def check_defaults(fields: dict[str, Any]) -> Defaults:
    """Return a batch's defaults.

    Raises:
        InputError: a value is not allowed.
    """
    try:
        return Defaults(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise InputError("\n".join(_sentences(error, "options", Defaults))) from None


def _parse_line(parse: Any, place: str, raw: bytes, *, first: bool) -> PlacedRow | Problem | None:
    try:
        line = raw.decode("utf-8-sig" if first else "utf-8").strip()
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        return Problem(f"{place}: byte {error.start + 1} is 0x{byte:02x}, which is no UTF-8; save the file as UTF-8")
    parsed: PlacedRow | Problem | None = parse(place, line)
    return parsed


def _parse_txt(place: str, line: str) -> PlacedRow | Problem | None:
    if not line or line.startswith("#"):
        return None
    return _check(place, {"prompt": line})


def _parse_jsonl(place: str, line: str) -> PlacedRow | Problem | None:
    if not line:
        return None
    try:
        fields = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        column = error.colno if isinstance(error, json.JSONDecodeError) else 1
        return Problem(
            f'{place} column {column}: {_shown(line)} is no JSON; write an object such as {{"prompt": "a cat"}}'
        )
    if not isinstance(fields, dict):
        return Problem(f'{place}: {_shown(line)} is no object; write one such as {{"prompt": "a cat"}}')
    return _check(place, fields)


def _check(place: str, fields: dict[str, Any]) -> PlacedRow | Problem:
    try:
        # a null says "not given"
        row = Row(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        return Problem("\n".join(_sentences(error, place, Row)))
    if not row.prompt.strip():
        return Problem(f"{place}: prompt '' is empty; write what the picture shows")
    return PlacedRow(place, row)


def _sentences(error: ValidationError, place: str, model: type[Defaults]) -> Iterator[str]:
    """Turn pydantic's findings into ``<place> <field> <value> <what is wrong>; <what to write>``."""
    for finding in error.errors():
        field = str(finding["loc"][0]) if finding["loc"] else "row"
        value, kind = finding["input"], finding["type"]
        if kind == "extra_forbidden":
            close = get_close_matches(field, model.model_fields, n=1)
            cure = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(sorted(model.model_fields))}"
            yield f"{place}: field {field!r} ({_shown(value)}) is not known; {cure}"
        elif kind == "missing":
            yield f'{place}: {field} is missing; write "{field}": "..."'
        elif kind == "value_error":
            yield f"{place}: {field} {_shown(value)} {finding['ctx']['error']}"
        else:
            yield f"{place}: {field} {_shown(value)} is wrong; {_lower(finding['msg'])}"


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_VALUE else f"{text[: _SHOWN_VALUE - 3]}..."


def _lower(message: str) -> str:
    return (message[0].lower() + message[1:]).replace("input should be", "write")
