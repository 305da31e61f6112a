"""Lines of an OpenAI batch file: ``custom_id``, ``method``, ``url`` and ``body``.

``body`` holds OpenAI's names (``prompt``, ``n``, ``size`` as ``WxH`` or ``auto``) and may hold ours as well
(``negative_prompt``, ``seed``, ...). ``model``, ``user`` and ``response_format`` are accepted and not used: the batch
names one model for all its rows, a row belongs to whoever submits it, and every picture goes to the bucket.
``output_format`` is our ``image_format``. Anything else is an unknown column.
"""

from __future__ import annotations

import re
from typing import Any

from latentfarm.submission.prompts.rows import ParsedRow, RowCheck, RowError, shown

URL = "/v1/images/generations"
_FRAME = frozenset({"custom_id", "method", "url", "body"})
_OPENAI_NAMES = frozenset({"n", "size", "output_format"})
_NOT_USED = frozenset({"model", "user", "response_format"})
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


class _BodyError(Exception):
    """An entry is wrong: (its name, its value, what is wrong and the cure)."""


def is_request(fields: dict[str, Any]) -> bool:
    """Tell whether a JSON line is one of an OpenAI batch file."""
    return "custom_id" in fields and "body" in fields


def check_request(place: str, check: RowCheck, fields: dict[str, Any]) -> ParsedRow:
    """Return the row that a batch line asks for."""
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
                    raise _BodyError(name, value, f"gives {field} a second time; write it once")
                own[field] = meant
                if name != "size":
                    labels[field] = name
            if check.field(name) in {None, "id"} and name not in _OPENAI_NAMES:
                foreign[name] = value
    except _BodyError as error:
        name, value, cure = error.args
        return RowError(f"{place}: {name} {shown(value)} {cure}", name)
    return check.fields(place, own, foreign, labels=labels)


def _meaning(check: RowCheck, name: str, value: Any) -> dict[str, Any]:
    """Return the fields that an entry of the body stands for."""
    field = check.field(name)
    if name == "n":
        return {"num_images_per_prompt": value}
    if name == "size":
        sides = _sides(value)
        if sides is None:
            raise _BodyError(name, value, 'is wrong; write "512x512", width first')
        return sides
    if name == "output_format":
        return {"image_format": value}
    return {field: value} if field not in {None, "id"} else {}


def _check_frame(fields: dict[str, Any]) -> None:
    if fields["custom_id"] is None:
        raise _BodyError("custom_id", None, "is missing; write a name of your own that is unique in the file")
    if fields.get("method") != "POST":
        raise _BodyError("method", fields.get("method"), 'is wrong; write "POST"')
    if fields.get("url") != URL:
        raise _BodyError("url", fields.get("url"), f'is not served here; write "{URL}"')
    if not isinstance(fields["body"], dict):
        raise _BodyError("body", fields["body"], 'is no object; write one such as {"prompt": "a cat"}')


def _sides(value: object) -> dict[str, int] | None:
    """Return width and height of OpenAI's ``size``; None where it is none."""
    if value == "auto":
        return {}
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return {"width": int(match[1]), "height": int(match[2])} if match else None
