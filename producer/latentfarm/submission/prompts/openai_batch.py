"""Lines of an OpenAI batch file: ``custom_id``, ``method``, ``url`` and ``body``.

``body`` has OpenAI's names and may have the fields of a row too; see ``aliases``. Any other name is an unknown column.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from latentfarm.job import ClientId
from latentfarm.names import BYTES, RESPONSE_FORMAT
from latentfarm.submission.prompts.rows import FieldError, ParsedRow, RowCheck, RowError, value_error

URL = "/v1/images/generations"
_FRAME = frozenset({"custom_id", "method", "url", "body"})
_client_id: TypeAdapter[str] = TypeAdapter(ClientId)


def is_request(fields: dict[str, Any]) -> bool:
    """Return whether a JSON object is a line of an OpenAI batch file."""
    return "custom_id" in fields and "body" in fields


def check_request(place: str, check: RowCheck, fields: dict[str, Any]) -> ParsedRow:
    """Return the row of a batch line, or its error, which has the line's ``custom_id`` if that can be one."""
    found = _check(place, check, fields)
    if isinstance(found, RowError):
        with suppress(ValidationError):
            return replace(found, id=_client_id.validate_python(fields.get("custom_id"), strict=True))
    return found


def _check(place: str, check: RowCheck, fields: dict[str, Any]) -> ParsedRow:
    try:
        _check_frame(fields)
        body = dict(fields["body"])
        if check.models and body.get("model") not in (None, *check.models):
            cure = f"is not the batch's model, {check.models[0]}; write a file for each model"
            raise FieldError("model", body["model"], cure)
        # only the frame names the row
        own_id = {name: body.pop(name) for name in ("id", "custom_id") if body.get(name) is not None}
        found = check.collect(body.items())
    except FieldError as error:
        return value_error(place, error)
    found.own["id"] = fields["custom_id"]
    found.labels["id"] = "custom_id"
    if check.models and body.get(RESPONSE_FORMAT) == BYTES:
        found.own["columns"] = {RESPONSE_FORMAT: BYTES}
    found.foreign.update(own_id)
    found.foreign.update({name: value for name, value in fields.items() if name not in _FRAME})
    return check.check(place, found)


def _check_frame(fields: dict[str, Any]) -> None:
    if fields.get("custom_id") is None:
        raise FieldError("custom_id", None, "is missing; write a name that is unique in the file")
    if fields.get("method") != "POST":
        raise FieldError("method", fields.get("method"), 'is invalid; write "POST"')
    if fields.get("url") != URL:
        raise FieldError("url", fields.get("url"), f'is not supported; write "{URL}"')
    if not isinstance(fields.get("body"), dict):
        raise FieldError("body", fields.get("body"), 'is not an object; write one such as {"prompt": "a cat"}')
