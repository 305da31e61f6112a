"""``/v1/images``: images that a client waits for, whole or as a stream."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from latentfarm.server.context import ServerContext, context_of
from latentfarm.server.http.body import read_json
from latentfarm.server.http.disconnect import cancel_on_disconnect
from latentfarm.server.http.multipart import read_form
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.interactive.inputs import run_with_inputs
from latentfarm.server.interactive.models import await_models, facts_of_model, resolve_model
from latentfarm.server.interactive.renderer import renderer_of
from latentfarm.server.interactive.rendering import RenderedImage, Rendering
from latentfarm.server.openai.edit_inputs import place_inputs
from latentfarm.server.openai.edit_request import read_edit_request
from latentfarm.server.openai.image_request import ImageRequest, read_image_request
from latentfarm.server.openai.image_stream import EDIT, GENERATION, image_stream
from latentfarm.server.openai.shapes import EditBody, EditForm, ImageBody, ImageEntry, ImagesAnswer, VariationForm
from latentfarm.server.openai.usage import usage_of
from latentfarm.server.security.access import audit_batch

#: bytes of a form that is refused: it is read, because many clients read no answer before they have sent all
_MAX_REFUSED_BYTES = 64 * 1024 * 1024
_GENERATIONS, _EDITS = "/v1/images/generations", "/v1/images/edits"


async def generate_images(request: Request) -> Response:
    """Render the images of a prompt, and answer with them or with a stream of events."""
    wanted = read_image_request(await read_json(request))
    async with cancel_on_disconnect(request):
        await await_models(context_of(request))
        model = await resolve_model(context_of(request), wanted.model)
    return await _render(request, wanted, model, kind=GENERATION)


async def edit_images(request: Request) -> Response:
    """Render images that begin with an image, and answer as for those of a prompt."""
    context = context_of(request)
    edit = await read_edit_request(request, context.settings.max_image_body_bytes)
    async with cancel_on_disconnect(request):
        await await_models(context)
        model = await resolve_model(context, edit.wanted.model)
        wanted = await run_with_inputs(request, place_inputs, context, edit, await facts_of_model(context, model))
    return await _render(request, wanted, model, kind=EDIT)


async def _render(request: Request, wanted: ImageRequest, model: str, *, kind: str) -> Response:
    if wanted.stream:
        return await image_stream(request, wanted, model, kind=kind)
    rendered = renderer_of(request).render(request, [wanted.row], model=model)
    async with cancel_on_disconnect(request), rendered as rendering:
        audit_batch(request, rendering.batch)
        body = await _answer(request, wanted, rendering)
    return Response(body, media_type="application/json")


async def _answer(request: Request, wanted: ImageRequest, rendering: Rendering) -> bytes:
    context = context_of(request)
    if wanted.by_url:
        return await context.run(_encode_urls, context, wanted, await rendering.results())
    images = await rendering.images()
    # some megabytes in base64 take milliseconds
    return await context.run(_encode_files, context, wanted, images)


def _encode_urls(context: ServerContext, wanted: ImageRequest, results: Sequence[dict[str, Any]]) -> bytes:
    bucket, expires_s = context.farm.bucket, context.settings.url_expires_s
    urls = [bucket.presign(result["key"], expires_s=expires_s) for result in results]
    return _encode(context, wanted, results, [ImageEntry(url=url) for url in urls])


def _encode_files(context: ServerContext, wanted: ImageRequest, images: Sequence[RenderedImage]) -> bytes:
    entries = [ImageEntry(b64_json=b64encode(image.body).decode("ascii")) for image in images]
    return _encode(context, wanted, [image.result for image in images], entries)


def _encode(
    context: ServerContext, wanted: ImageRequest, results: Sequence[dict[str, Any]], entries: list[ImageEntry]
) -> bytes:
    first = results[0]["request"]
    answer = ImagesAnswer(
        created=context.farm.ledger.now_s(),
        data=entries,
        output_format=first.get("image_format", "png"),
        size=f"{first['width']}x{first['height']}",
        usage=usage_of(results),
        notes=list(wanted.notes) or None,
    )
    # clients written in JavaScript test for a key, not for its value
    return to_json(answer, exclude_none=True)


async def vary_images(request: Request) -> Response:
    """Refuse."""
    await _discard(request)
    raise RequestError(
        400, "not_supported", f"variations are not supported; send the image and a prompt to {_EDITS}", param="image"
    )


async def _discard(request: Request) -> None:
    """Read a form with an image, and keep nothing of it."""
    async for _ in read_form(request, _MAX_REFUSED_BYTES):
        pass


OPERATIONS = (
    Operation(
        "POST",
        _GENERATIONS,
        generate_images,
        Scope.SUBMIT,
        "Render images of a prompt",
        audited=True,
        body=ImageBody,
        answer=ImagesAnswer,
    ),
    Operation(
        "POST",
        _EDITS,
        edit_images,
        Scope.SUBMIT,
        "Render images that begin with an image",
        audited=True,
        body=EditBody,
        form=EditForm,
        answer=ImagesAnswer,
    ),
    Operation(
        "POST",
        "/v1/images/variations",
        vary_images,
        Scope.SUBMIT,
        "Vary an image: not supported",
        form=VariationForm,
        answer=ImagesAnswer,
    ),
)
