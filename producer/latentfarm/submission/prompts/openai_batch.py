"""Lines of an OpenAI batch file: ``custom_id``, ``method``, ``url`` and ``body``.

``body`` has OpenAI's names and may have the fields of a row too; see ``aliases``. Any other name is an unknown column.
The images of an edit are URLs or ids of uploaded files, and its mask is transparent where the image is painted again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from latentfarm.job import ClientId
from latentfarm.names import BYTES, RESPONSE_FORMAT, TRANSPARENT
from latentfarm.submission.prompts.rows import FieldError, ParsedRow, RowCheck, RowError, value_error

URL, EDITS_URL = "/v1/images/generations", "/v1/images/edits"
URLS = (URL, EDITS_URL)
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
        if fields["url"] == EDITS_URL:
            body = _edit(body)
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
    if fields.get("url") not in URLS:
        raise FieldError("url", fields.get("url"), f'is not supported; write "{URL}" or "{EDITS_URL}"')
    if not isinstance(fields.get("body"), dict):
        raise FieldError("body", fields.get("body"), 'is not an object; write one such as {"prompt": "a cat"}')


def _edit(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of an edit with the fields of a row: ``image``, and ``mask_image`` for a mask."""
    fields = dict(body)
    images, mask = fields.pop("images", None), fields.pop("mask", None)
    if images is not None:
        if not isinstance(images, list) or len(images) != 1 or fields.get("image") is not None:
            raise FieldError("images", images, "is not a list of one image; write a line for each image")
        fields["image"] = _reference("images", images[0])
    if fields.get("image") is None:
        raise FieldError("images", images, "is missing; write the image to edit")
    if mask is not None:
        if fields.get("mask_image") is not None:
            raise FieldError("mask", mask, "contradicts mask_image; write one of them")
        fields["mask_image"] = f"{TRANSPARENT}{_reference('mask', mask)}"
    return fields


def _reference(name: str, value: Any) -> str:
    """Return the source of an image: a URL, or the id of an uploaded file."""
    given = {key: text for key, text in value.items() if text is not None} if isinstance(value, dict) else {}
    [source] = given.values() if len(given) == 1 and given.keys() <= {"image_url", "file_id"} else [None]
    if not isinstance(source, str):
        raise FieldError(name, value, 'is invalid; write {"image_url": "..."} or {"file_id": "..."}')
    return source
