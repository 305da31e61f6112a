"""Sweeps, such as ``guidance_scale=5,7.5,10`` and ``seed=1..4``. Each multiplies every row."""

from __future__ import annotations

import csv
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_jsonable_python

from latentfarm.edit_fields import SOURCE_FIELDS, SOURCE_LIST_FIELDS
from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row
from latentfarm.submission.prompts.aliases import ALIASES, Dialect, normalize
from latentfarm.submission.prompts.columns import suggest_field
from latentfarm.submission.prompts.rows import abbreviate, describe_invalid

#: rows that one row may expand to
MAX_FACTOR = 10_000_000

#: whose values are no numbers, so that 1..4 is no range
_TEXTS = frozenset(
    {
        *("negative_prompt", "guidance_interval", "scheduler", "prompt_syntax", "image_format", "resize"),
        *("hires_upscaler", "safety", "loras", "controlnet", "control_preprocessor", "ip_adapter", "refiner"),
        *SOURCE_FIELDS,
        *SOURCE_LIST_FIELDS,
    }
)
#: lists whose entries are joined by a plus sign in one value; no name has one
_LISTS = frozenset(
    {
        *("loras", "controlnet", "controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"),
        *("control_preprocessor", "ip_adapter", "ip_adapter_scale"),
    }
)
_NO_LORAS = "none"
_RANGE = re.compile(r"([+-]?\d{1,19})\.\.([+-]?\d{1,19})(?:\.\.([+-]?\d{1,19}))?")
_validate = Row.__pydantic_validator__.validate_python


@dataclass(frozen=True)
class Sweep:
    """The values of one field, in order: ``runs`` are single values and ranges."""

    field: str
    runs: tuple[Sequence[Any], ...]

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def value(self, place: int) -> Any:
        """Return the value at ``place``, from 0."""
        ends = list(accumulate(map(len, self.runs)))
        run = bisect_right(ends, place)
        return self.runs[run][place - (ends[run - 1] if run else 0)]

    @property
    def key(self) -> list[Any]:
        """Field and values; a range is start, stop and step."""
        runs = [
            [run.start, run.stop, run.step] if isinstance(run, range) else {"values": to_jsonable_python(list(run))}
            for run in self.runs
        ]
        return [self.field, runs]


def factor_of(sweeps: Sequence[Sweep]) -> int:
    """Return the number of rows that one row expands to."""
    return prod(map(len, sweeps))


def parse_sweeps(options: Sequence[str]) -> tuple[Sweep, ...]:
    """Return the sweeps of ``FIELD=VALUES`` options, in order.

    FIELD is a field of a batch's defaults. VALUES are separated by commas; a value that contains a comma is in double
    quotes. ``1..4`` is 1, 2, 3, 4 and ``1..10..3`` is 1, 4, 7, 10. Values of ``scheduler_options`` are JSON objects. A
    value of a list may have several entries: ``loras=a,b:0.5,a+b:0.5,none``.

    Raises:
        InputError: an option is invalid, a field is swept twice, or the product is over ten million.
    """
    found: list[Sweep] = []
    for option in options:
        sweep = _parse(option)
        if any(sweep.field == other.field for other in found):
            raise InputError(f"--sweep {abbreviate(option)}: {sweep.field} is swept twice; use one --sweep")
        found.append(sweep)
        if factor_of(found) > MAX_FACTOR:
            raise InputError(f"--sweep {abbreviate(option)}: {_too_many(factor_of(found))}")
    return tuple(found)


def _too_many(rows: int) -> str:
    return f"a row would expand to {rows:,} rows; the limit is {MAX_FACTOR:,}"


def _parse(option: str) -> Sweep:
    name, equals, text = option.partition("=")
    field = name.strip()
    if not equals:
        raise InputError(f"--sweep {abbreviate(option)} has no values; write FIELD=VALUES, such as seed=1..4")
    if field not in Defaults.model_fields:
        alias = ALIASES[Dialect.LONG].get(normalize(field))
        meant = alias.field if alias and alias.field in Defaults.model_fields else field
        cure = suggest_field(meant, Defaults.model_fields)
        raise InputError(f"--sweep {abbreviate(option)}: field {abbreviate(field)} cannot be swept; {cure}")
    try:
        return Sweep(field, tuple(_run(field, value) for value in _split(field, text)))
    except _ValueError as error:
        raise InputError(f"--sweep {abbreviate(option)}: {error}") from None


class _ValueError(Exception):
    """A sweep's value is invalid: problem and cure."""


def _split(field: str, text: str) -> list[Any]:
    if field == "scheduler_options":
        try:
            options: list[Any] = from_json(f"[{text}]", allow_inf_nan=False)
        except ValueError:
            raise _ValueError(f'{abbreviate(text)} is not JSON; write objects such as {{"solver_order": 3}}') from None
        return options
    try:
        [values] = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise _ValueError(
            f'the quotes in {abbreviate(text)} are not closed; write "a, b" for a value with a comma'
        ) from None
    if not values:
        raise _ValueError("there are no values; write FIELD=VALUES, such as seed=1..4")
    return values


def _run(field: str, value: Any) -> Sequence[Any]:
    matched = _RANGE.fullmatch(value.strip()) if isinstance(value, str) and field not in _TEXTS else None
    if matched is None:
        return (_validated(field, value),)
    start, stop, step = int(matched[1]), int(matched[2]), int(matched[3] or 1)
    if step < 1:
        raise _ValueError(f"the step of {value.strip()} is invalid; write 1 or more")
    if stop < start:
        raise _ValueError(f"{value.strip()} is reversed; write {stop}..{start}")
    count = (stop - start) // step + 1
    last = start + (count - 1) * step
    for end in (start, last):
        _validated(field, end)
    if count > MAX_FACTOR:
        raise _ValueError(_too_many(count))
    run = range(start, last + 1, step)
    if field == "seed":
        # between two valid seeds, every seed is valid
        return run
    return tuple(_validated(field, number) for number in run)


def _validated(field: str, value: Any) -> Any:
    """Return a value as a row has it."""
    if isinstance(value, str) and field != "negative_prompt":
        value = value.strip()
    if field in _LISTS and isinstance(value, str):
        entries = [entry.strip() for entry in value.split("+")]
        value = [] if field == "loras" and entries == [_NO_LORAS] else entries
        if not all(value):
            raise _ValueError(f"{field} has an empty value; remove the comma or the plus sign, or write a value")
    elif field in SOURCE_LIST_FIELDS:
        value = [value]
    if value in ("", None) and field != "negative_prompt":
        raise _ValueError(f"{field} has an empty value; remove the comma, or write a value")
    try:
        return getattr(_validate({"prompt": "-", field: value}), field)
    except ValidationError as error:
        raise _ValueError(f"{field} {describe_invalid(error)}") from None
