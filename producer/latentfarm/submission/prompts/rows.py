"""Turn a row's fields into a ``Row``, or into a ``RowError`` with place, field, value and cure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from latentfarm import schedulers
from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row
from latentfarm.samplers import find_sampler
from latentfarm.submission.prompts.aliases import IMAGES, SAMPLER, SCHEDULE, Dialect, is_any_seed
from latentfarm.submission.prompts.columns import ColumnNames, Meaning, ReadOptions, suggest_field
from latentfarm.submission.prompts.notes import Notes
from latentfarm.submission.prompts.web_ui import SecondStageError, set_second_stage

#: errors listed for one row; a row of 1 MiB could have 100,000
_MAX_ERRORS = 8
_MAX_VALUE_CHARACTERS = 60

#: where a style of AUTOMATIC1111 has the prompt
STYLE_MARK = "{prompt}"
_validate = Row.__pydantic_validator__.validate_python


class LocatedRow(NamedTuple):
    """A valid row and its place, such as ``prompts.jsonl line 17``."""

    place: str
    row: Row


@dataclass(frozen=True, slots=True)
class RowError:
    """The errors of an invalid row.

    ``text`` has a line per error: place, field, value and cure. ``reason`` groups rows with the same error: ``width``,
    ``unknown field 'widht'``, ``not JSON``. ``id`` is the client's own name for the row, if it is known.
    """

    text: str
    reason: str
    id: str | None = None


ParsedRow = LocatedRow | RowError


class FieldError(Exception):
    """A value of a row is invalid: (its name, its value, problem and cure)."""


class Fields(NamedTuple):
    """The values of a row: by field, by unknown column, and the user's name of each field."""

    own: dict[str, Any]
    foreign: dict[str, Any]
    labels: dict[str, str]


class RowCheck:
    """Checks the rows of one source."""

    def __init__(self, options: ReadOptions, notes: Notes) -> None:
        self.notes = notes
        self.names = ColumnNames(options)
        self.prompt_column = options.mapped.get("prompt", "prompt")
        #: whether unknown columns are copied to the results
        self.keep = bool(options.keep_columns)
        #: whether columns are named like fields, and unknown ones are errors
        self.direct = not options.keep_columns and not options.mapped and not options.models
        #: names of the model that requests of an OpenAI batch may have; empty: any, and rows need not be requests
        self.models = options.models

    def field(self, column: str) -> str | None:
        """Return the field of a column, an empty text if it is passed over, or None for an unknown column."""
        meaning = self.names.meaning(column)
        return None if meaning is None else meaning.field

    def row(self, place: str, fields: Mapping[str, Any]) -> ParsedRow:
        """Check a row by its columns. A known column with None is ignored."""
        try:
            return self.check(place, self.collect(fields.items()))
        except FieldError as error:
            return value_error(place, error)

    def collect(self, pairs: Iterable[tuple[str, Any]], *, dialect: Dialect = Dialect.LONG, dashes: str = "") -> Fields:
        """Return the values of a row by field; note which names were mapped or passed over.

        Args:
            pairs: columns, keys or flags, and their values.
            dialect: the tool whose names they are.
            dashes: what precedes a name in messages.

        Raises:
            FieldError: a value of an alias is invalid, or a field is set twice.
        """
        found = Fields({}, {}, {"prompt": self.prompt_column})
        weak: list[tuple[str, Any, Meaning]] = []
        for name, value in pairs:
            meaning = self.names.meaning(name, dialect)
            if meaning is None:
                found.foreign[name] = value
            elif meaning.weak:
                weak.append((name, value, meaning))
            elif value is not None:
                self._set(found, name, value, meaning, dashes)
        for name, value, meaning in weak:
            if value is not None and "prompt" not in found.own:
                self._set(found, name, value, meaning, dashes)
            else:
                found.foreign[name] = value
        set_scheduler(found.own, self.notes)
        try:
            set_second_stage(found.own, self.notes)
        except SecondStageError as error:
            raise FieldError(*error.args) from None
        return found

    def check(self, place: str, fields: Fields) -> ParsedRow:
        """Validate a row's fields; keep or refuse its unknown columns."""
        own, labels = fields.own, fields.labels
        unknown = [
            self._unknown(place, column, value)
            for column, value in fields.foreign.items()
            if value is not None and not self.keep
        ]
        if fields.foreign and self.keep:
            own["columns"] = self._kept(fields.foreign)
        try:
            row = _validate(own)
        except ValidationError as error:
            return _row_error([*_field_errors(error, place, Row, labels), *unknown])
        except RecursionError:
            return RowError(f"{place}: a value is nested too deeply; write it flatter", "nested too deeply")
        if unknown:
            return _row_error(unknown)
        label = labels["prompt"]
        if STYLE_MARK in row.prompt:
            text = f"{place}: {label} {abbreviate(row.prompt)} is a style: write the prompt in place of {STYLE_MARK}"
            return RowError(text, "a style")
        if not row.prompt or row.prompt.isspace():
            return RowError(f"{place}: {label} '' is empty; describe the image", "prompt is empty")
        return LocatedRow(place, row)

    def _set(self, found: Fields, name: str, value: Any, meaning: Meaning, dashes: str) -> None:
        """Set the fields of one name."""
        label = f"{dashes}{name}"
        try:
            values = {meaning.field: value} if meaning.alias is None else meaning.alias.read(value)
        except ValueError as error:
            raise FieldError(label, value, str(error)) from None
        for field, parsed in values.items():
            if field == "seed" and is_any_seed(parsed):
                self.notes.add(f"{label} {abbreviate(parsed)} means any seed: it is derived from batch and index")
                continue
            before = found.own.get(field)
            if field == IMAGES and type(before) is type(parsed) is int:
                found.own[field] = before * parsed
            elif before is not None and str(before) != str(parsed):
                raise FieldError(label, value, f"sets {field} a second time; write it once")
            else:
                found.own[field] = parsed
            if len(values) == 1:
                found.labels[field] = label
        if meaning.note:
            self.notes.add(f"{label if dashes else abbreviate(name)} {meaning.note}")

    def _kept(self, foreign: Mapping[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for column, value in foreign.items():
            if not self.names.keeps(column):
                self.notes.add(f"{abbreviate(column)} is not kept: --keep-columns does not name it")
                continue
            kept[column] = value
            if self.names.is_ignored(column, value):
                self.notes.add(f"{abbreviate(column)} is kept unread and has no effect")
            elif near := self.names.near_miss(column):
                self.notes.add(f"{abbreviate(column)} is kept unread; to read it, use --column {near}={column}")
        return kept

    def _unknown(self, place: str, column: str, value: object) -> tuple[str, str]:
        return (
            f"unknown field {abbreviate(column)}",
            f"{place}: field {abbreviate(column)} ({abbreviate(value)}) {self.names.cure(column)}",
        )


def value_error(place: str, error: FieldError) -> RowError:
    """Return the error of a row with an invalid value."""
    name, value, cure = error.args
    return RowError(f"{place}: {name} {abbreviate(value)} {cure}", name)


def set_scheduler(fields: dict[str, Any], notes: Notes) -> None:
    """Replace a sampler of another tool, and its schedule, by the scheduler's short name.

    Raises:
        FieldError: the sampler is not supported.
    """
    sampler, schedule, scheduler = fields.pop(SAMPLER, None), fields.pop(SCHEDULE, None), fields.get("scheduler")
    if sampler is None:
        if schedule is not None and scheduler is None:
            raise FieldError("schedule", schedule, "has no sampler; name the sampler too")
        if not isinstance(scheduler, str) or (schedule is None and _is_scheduler(scheduler)):
            return
        sampler = scheduler
    elif scheduler is not None:
        # AUTOMATIC1111's API and ComfyUI call the schedule of noise levels "scheduler"
        if _is_scheduler(str(scheduler)):
            raise FieldError("sampler", sampler, f"contradicts scheduler {abbreviate(scheduler)}; write one of them")
        schedule = str(scheduler)
    text = sampler if schedule is None else f"{sampler} {schedule}"
    try:
        found = find_sampler(sampler, schedule)
    except ValueError as error:
        if sampler == scheduler and schedule is None:
            # validation names the nearest scheduler
            return
        raise FieldError("sampler", text, str(error)) from None
    fields["scheduler"] = found.scheduler
    if found.scheduler != sampler or found.near:
        differs = f", which differs: {found.near}" if found.near else ""
        notes.add(f"sampler {abbreviate(text)} is read as scheduler {found.scheduler}{differs}")


def _is_scheduler(name: str) -> bool:
    try:
        schedulers.resolve(name)
    except InputError:
        return False
    return True


def check_defaults(fields: dict[str, Any], notes: Notes) -> Defaults:
    """Return a batch's defaults. Fields with None are not set, nor is a seed of -1.

    Raises:
        InputError: a value is invalid.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if is_any_seed(given.get("seed")):
        del given["seed"]
    try:
        set_scheduler(given, notes)
        return Defaults(**given)
    except FieldError as error:
        raise InputError(value_error("options", error).text, field="scheduler") from None
    except ValidationError as error:
        texts, first = _field_errors(error, "options", Defaults, {}), error.errors(include_url=False)[0]["loc"]
        raise InputError("\n".join(text for _, text in texts), field=str(first[0]) if first else "") from None


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
            cure = suggest_field(field, model.model_fields)
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
