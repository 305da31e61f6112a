"""Reads the body of a request for images: OpenAI's fields and those of prompt rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from latentfarm.names import BYTES
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.openai.shapes import MAX_IMAGES, ImageBody
from latentfarm.submission.prompts import Notes, ReadOptions, RowError
from latentfarm.submission.prompts.aliases import IMAGES
from latentfarm.submission.prompts.rows import RowCheck

#: fields of OpenAI's and of its clients that change no image of these models
_PASSED_OVER = frozenset({"complexity", "frame_duration_ms", "input_fidelity", "metadata", "svg", "extra_headers"})
#: fields of other engines, with what to do instead
_REFUSED = {
    "true_cfg_scale": "is not supported by these models; write guidance_scale",
    "images": "is for /v1/images/edits; send it there, or write image",
    "mask": "is for /v1/images/edits; send it there, or write mask_image: white is painted again",
}
_PLACE = "the request"
#: what only a command can do
_KEEP_COLUMNS = " Or use --keep-columns to copy it to the results"
#: the client's name of the field at the beginning of an error's text
_NAME = re.compile(r"(?:field )?['\"]?(\w+)")


@dataclass(frozen=True)
class ImageRequest:
    """What a client wants. ``row`` has the fields of a prompt row; the file is sent in base64 unless ``by_url``.

    ``notes`` say what was passed over, and what differs from what the client has named.
    """

    model: str | None
    row: dict[str, Any]
    by_url: bool
    stream: bool
    partial_images: int
    notes: tuple[str, ...] = ()


def read_image_request(value: Any) -> ImageRequest:
    """Return what a body means.

    Raises:
        RequestError: 400 with the field, its value and the cure.
        ValidationError: a field of OpenAI's is invalid.
    """
    body = ImageBody.model_validate(value)
    fields: dict[str, Any] = {"prompt": body.prompt, "n": body.n}
    passed: list[str] = []
    for name, found in (body.model_extra or {}).items():
        if found is None:
            continue
        if name in _PASSED_OVER:
            passed.append(f"{name!r} is passed over: it has no effect on the image here")
            continue
        if cure := _REFUSED.get(name):
            raise RequestError(400, "not_supported", f"{name} {cure}", param=name)
        fields[name] = found
    notes = Notes()
    row = RowCheck(ReadOptions(), notes).row(_PLACE, fields)
    if isinstance(row, RowError):
        text = row.text.removeprefix(f"{_PLACE}: ").replace(f"\n{_PLACE}: ", "; ").replace(_KEEP_COLUMNS, "")
        label = _NAME.match(text)
        raise RequestError(400, "invalid_request", text, param=label[1] if label else None)
    given = row.row.given()
    if given.get(IMAGES, 1) > MAX_IMAGES:
        text = f"the request has {given[IMAGES]} images; write 1 to {MAX_IMAGES}, or use /v1/batches"
        raise RequestError(400, "invalid_request", text, param="n")
    stream = bool(body.stream)
    if stream and body.response_format not in {None, BYTES}:
        raise RequestError(400, "invalid_request", f"a stream has no URLs; write {BYTES!r}", param="response_format")
    return ImageRequest(
        model=body.model,
        row=given,
        by_url=body.response_format == "url",
        stream=stream,
        partial_images=(body.partial_images or 0) if stream else 0,
        # another name of the same value is no news
        notes=(*passed, *(note for note in notes if "passed over" in note or "differs" in note)),
    )
