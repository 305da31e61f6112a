"""Reads the body of a request that edits an image: a form with files, or JSON with URLs and ids of files.

OpenAI's mask is transparent where the image is painted again. The field ``mask_image`` is ours: white is painted again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from latentfarm.limits import MAX_INPUT_BYTES
from latentfarm.server.http.body import read_json
from latentfarm.server.http.multipart import FormPart, read_form
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.openai.image_request import ImageRequest, read_image_request
from latentfarm.server.openai.shapes import EditBody

#: bytes of the texts of a form
_MAX_TEXT_BYTES = 1_048_576
#: the files of an edit, by the name of a form's part
_FILES = ("image", "mask", "mask_image")
_NUMBERS = frozenset({"n", "partial_images"})
_FLAGS = {"true": True, "false": False}
#: a row needs a source before its image is stored
_PLACEHOLDER = "image"


@dataclass(frozen=True)
class EditRequest:
    """What a client wants.

    Attributes:
        wanted: the request, whose row has no sources yet.
        files: bytes, or a source, of the image and of a mask, by the names of OpenAI's parts.
    """

    wanted: ImageRequest
    files: dict[str, bytes | str]


@dataclass
class _Form:
    """The parts of a form so far."""

    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytearray] = field(default_factory=dict)
    text_bytes: int = 0


async def read_edit_request(request: Request, limit: int) -> EditRequest:
    """Return what a body means.

    Args:
        request: the request: JSON, or a form.
        limit: bytes of the body.

    Raises:
        RequestError: 400 with the field, its value and the cure; 413 and 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _of_json(EditBody.model_validate(await read_json(request, limit=limit)))
    form = await _read_form(request, limit)
    files: dict[str, bytes | str] = {name: bytes(body) for name, body in form.files.items()}
    return _request(form.fields, files)


async def _read_form(request: Request, limit: int) -> _Form:
    form = _Form()
    target: bytearray | None = None
    texts: dict[str, list[bytearray]] = {}
    async for event in read_form(request, limit):
        if isinstance(event, FormPart):
            name = event.name.removesuffix("[]")
            if name in _FILES:
                if name in form.files:
                    raise _invalid(f"{name} is there twice; send one, and a request for each image", name)
                target = form.files[name] = bytearray()
            else:
                target = bytearray()
                texts.setdefault(event.name, []).append(target)
        elif target is not None:
            target += event
            _check_sizes(form, texts)
    form.fields = {name.removesuffix("[]"): _value(name, values) for name, values in texts.items()}
    return form


def _check_sizes(form: _Form, texts: Mapping[str, list[bytearray]]) -> None:
    for name, body in form.files.items():
        if len(body) > MAX_INPUT_BYTES:
            raise RequestError(
                413,
                "file_too_large",
                f"{name} is larger than {MAX_INPUT_BYTES:,} bytes; send a smaller one",
                param=name,
            )
    if sum(len(text) for values in texts.values() for text in values) > _MAX_TEXT_BYTES:
        raise RequestError(413, "body_too_large", f"the form's texts are longer than {_MAX_TEXT_BYTES:,} bytes")


def _value(name: str, values: list[bytearray]) -> Any:
    """Return the value of a field of a form, whose values are texts."""
    try:
        read = [_parse(name, value.decode()) for value in values]
    except UnicodeDecodeError:
        raise _invalid(f"{name[:80]} is not UTF-8; encode it in UTF-8", name) from None
    if name.endswith("[]"):
        return read
    if len(read) > 1:
        raise _invalid(f"{name[:80]} is there twice; send it once", name)
    return read[0]


def _parse(name: str, text: str) -> Any:
    if name in _NUMBERS and text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    return _FLAGS.get(text, text) if name == "stream" else text


def _of_json(body: EditBody) -> EditRequest:
    fields = dict(body.model_extra or {})
    files: dict[str, bytes | str] = {}
    if len(body.images) > 1:
        raise _invalid(f"images has {len(body.images)} entries; send one, and a request for each image", "images")
    if body.images:
        files["image"] = body.images[0].source("images")
    for name in ("image", "mask_image"):
        if isinstance(source := fields.pop(name, None), str):
            files[name] = source
    if body.mask is not None:
        files["mask"] = body.mask.source("mask")
    return _request({**fields, "prompt": body.prompt}, files)


def _request(fields: Mapping[str, Any], files: dict[str, bytes | str]) -> EditRequest:
    if not files.get("image"):
        raise _invalid("image is missing; send the image to edit", "image")
    if "mask" in files and "mask_image" in files:
        raise _invalid("there are mask and mask_image; send one of them", "mask")
    inputs = {"image": _PLACEHOLDER}
    if len(files) > 1:
        inputs["mask_image"] = _PLACEHOLDER
    return EditRequest(read_image_request({**fields, **inputs}), files)


def _invalid(message: str, param: str) -> RequestError:
    return RequestError(400, "invalid_request", message, param=param[:80])
