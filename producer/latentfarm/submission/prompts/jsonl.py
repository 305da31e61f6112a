"""JSON lines: objects with diffusers' parameter names, or lines of an OpenAI batch file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from pydantic import ValidationError
from pydantic_core import from_json

from latentfarm.job import Row
from latentfarm.submission.prompts import openai_batch
from latentfarm.submission.prompts.lines import not_utf8_error, rows_of_lines
from latentfarm.submission.prompts.rows import LocatedRow, ParsedRow, RowCheck, RowError, abbreviate

_SHORTEST_ROW = len('{"prompt":"a"}')
_COLUMN = re.compile(r"column (\d+)$")
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
                if row.prompt and row.columns is None and not row.prompt.isspace():
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
        fields = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        message = str(error)
        at = _COLUMN.search(message)
        column = at[1] if at and "recursion" not in message else "1"
        return RowError(
            f'{place} column {column}: {abbreviate(line)} is not JSON; write an object such as {{"prompt": "a cat"}}',
            "not JSON",
        )
    if not isinstance(fields, dict):
        text = f'{place}: {abbreviate(line)} is not an object; write one such as {{"prompt": "a cat"}}'
        return RowError(text, "not an object")
    if openai_batch.is_request(fields):
        return openai_batch.check_request(place, check, fields)
    return check.row(place, fields)
