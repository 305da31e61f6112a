"""Lines of an OpenAI batch file: ``custom_id``, ``method``, ``url`` and ``body``.

``body`` has OpenAI's names (``prompt``, ``n``, ``size`` as ``WxH`` or ``auto``, ``output_format``) and may have the
fields of a row too. ``model``, ``user`` and ``response_format`` are ignored: a batch has one model, and images go to
the bucket. Any other name is an unknown column.
"""

from __future__ import annotations

import re
from typing import Any

from latentfarm.submission.prompts.rows import ParsedRow, RowCheck, RowError, abbreviate

URL = "/v1/images/generations"
_FRAME = frozenset({"custom_id", "method", "url", "body"})
_OPENAI_NAMES = frozenset({"n", "size", "output_format"})
_NOT_USED = frozenset({"model", "user", "response_format"})
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


class _BodyError(Exception):
    """An entry is invalid: (its name, its value, problem and cure)."""


def is_request(fields: dict[str, Any]) -> bool:
    """Return whether a JSON object is a line of an OpenAI batch file."""
    return "custom_id" in fields and "body" in fields


def check_request(place: str, check: RowCheck, fields: dict[str, Any]) -> ParsedRow:
    """Return the row of a batch line, or its error."""
    foreign = {name: value for name, value in fields.items() if name not in _FRAME}
    own: dict[str, Any] = {}
    labels = {"id": "custom_id", "prompt": check.prompt_column}
    try:
        _check_frame(fields)
        own["id"] = fields["custom_id"]
        for name, value in fields["body"].items():
            if value is None or name in _NOT_USED:
                continue
            for field, meant in _meaning(check, name, value).items():
                if field in own:
                    raise _BodyError(name, value, f"sets {field} a second time; write it once")
                own[field] = meant
                if name != "size":
                    labels[field] = name
            if check.field(name) in {None, "id"} and name not in _OPENAI_NAMES:
                foreign[name] = value
    except _BodyError as error:
        name, value, cure = error.args
        return RowError(f"{place}: {name} {abbreviate(value)} {cure}", name)
    return check.fields(place, own, foreign, labels=labels)


def _meaning(check: RowCheck, name: str, value: Any) -> dict[str, Any]:
    """Return the fields that an entry of the body sets."""
    field = check.field(name)
    if name == "n":
        return {"num_images_per_prompt": value}
    if name == "size":
        sides = _sides(value)
        if sides is None:
            raise _BodyError(name, value, 'is invalid; write "512x512", width first')
        return sides
    if name == "output_format":
        return {"image_format": value}
    return {field: value} if field not in {None, "id"} else {}


def _check_frame(fields: dict[str, Any]) -> None:
    if fields["custom_id"] is None:
        raise _BodyError("custom_id", None, "is missing; write a name that is unique in the file")
    if fields.get("method") != "POST":
        raise _BodyError("method", fields.get("method"), 'is invalid; write "POST"')
    if fields.get("url") != URL:
        raise _BodyError("url", fields.get("url"), f'is not supported; write "{URL}"')
    if not isinstance(fields["body"], dict):
        raise _BodyError("body", fields["body"], 'is not an object; write one such as {"prompt": "a cat"}')


def _sides(value: object) -> dict[str, int] | None:
    """Return the width and height of OpenAI's ``size``, or None if it is invalid."""
    if value == "auto":
        return {}
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return {"width": int(match[1]), "height": int(match[2])} if match else None
