"""JSON lines: prompts, objects with diffusers' parameter names, or lines of an OpenAI batch file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from pydantic import ValidationError
from pydantic_core import from_json

from latentfarm.job import Row
from latentfarm.submission.prompts import openai_batch
from latentfarm.submission.prompts.aliases import Dialect
from latentfarm.submission.prompts.lines import not_utf8_error, rows_of_lines, stray_line_end
from latentfarm.submission.prompts.rows import (
    STYLE_MARK,
    FieldError,
    LocatedRow,
    ParsedRow,
    RowCheck,
    RowError,
    abbreviate,
    value_error,
)

_SHORTEST_ROW = len('{"prompt":"a"}')
_COLUMN = re.compile(r"column (\d+)$")
#: how a JSON document begins that is laid out over several lines
_FIRST_LINES = frozenset({"[", "{", "[{"})
_validate_line = Row.__pydantic_validator__.validate_json


def read_jsonl(stream: BinaryIO, name: str, check: RowCheck) -> Iterator[ParsedRow]:
    """Yield the rows of a JSON lines file. Blank lines are skipped.

    Raises:
        InputError: the stream is not text.
    """
    return rows_of_lines(stream, name, partial(_parse_direct if check.direct else _parse, f"{name} line ", check))


def _parse_direct(prefix: str, check: RowCheck, number: int, lines: list[bytes]) -> Iterator[ParsedRow]:
    """Parse and validate in one call, in Rust. A line that fails is parsed again, to find the error."""
    for line in lines:
        number += 1
        if len(line) < _SHORTEST_ROW and not line.strip():
            continue
        if b'"custom_id"' not in line:
            try:
                row = _validate_line(line)
            except ValidationError:
                pass
            else:
                plain = row.prompt and not row.prompt.isspace() and STYLE_MARK not in row.prompt
                if plain and row.columns is None:
                    yield LocatedRow(f"{prefix}{number}", row)
                    continue
        found = parse_line(f"{prefix}{number}", check, line)
        if found is not None:
            yield found


def _parse(prefix: str, check: RowCheck, number: int, lines: list[bytes]) -> Iterator[ParsedRow]:
    for line in lines:
        number += 1
        found = parse_line(f"{prefix}{number}", check, line)
        if found is not None:
            yield found


def parse_line(place: str, check: RowCheck, raw: bytes) -> ParsedRow | None:
    """Return the row of one line, or its error; None for a blank line."""
    try:
        line = raw.decode().strip()
    except UnicodeDecodeError as error:
        return not_utf8_error(place, error)
    if not line:
        return None
    try:
        value = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        return _not_json(place, line, str(error))
    if isinstance(value, list):
        cure = "write each entry on a line of its own, or read the file with --format json"
        return RowError(f"{place}: {abbreviate(line)} is a list; {cure}", "a list")
    return check_value(place, check, value)


def check_value(place: str, check: RowCheck, value: object, *, key: str | None = None) -> ParsedRow:
    """Return the row of a JSON value, or its error.

    Args:
        place: the value's place, for messages.
        check: checks the row.
        value: a prompt, an object with fields, or a line of an OpenAI batch file.
        key: the row's id, unless the value has one.
    """
    if isinstance(value, str):
        value = {check.prompt_column: value}
    if not isinstance(value, dict):
        text = f'{place}: {abbreviate(value)} is not an object; write one such as {{"prompt": "a cat"}}'
        return RowError(text, "not an object")
    if check.models or openai_batch.is_request(value):
        return openai_batch.check_request(place, check, value)
    has_other = not isinstance(value.get("p"), str) or check.names.prompt_name(value) is not None
    dialect = Dialect.LONG if has_other else Dialect.DIFFUSIONDB
    try:
        fields = check.collect(value.items(), dialect=dialect)
    except FieldError as error:
        return value_error(place, error)
    if key is not None and fields.own.setdefault("id", key) is key:
        fields.labels["id"] = "key"
    return check.check(place, fields)


def _not_json(place: str, line: str, message: str) -> RowError:
    at = _COLUMN.search(message)
    column = at[1] if at and "recursion" not in message else "1"
    cure = 'write an object such as {"prompt": "a cat"}'
    if line in _FIRST_LINES:
        cure = "write each entry on a line of its own, or read the file with --format json"
    elif line.endswith(","):
        cure = "remove the comma at its end"
    elif stray := stray_line_end(line):
        cure = stray
    return RowError(f"{place} column {column}: {abbreviate(line)} is not JSON; {cure}", "not JSON")
