"""Streams an image while it is made: estimates of it, then the image itself."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from io import BytesIO
from typing import Any

from PIL import Image
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from latentfarm.image_formats import PILLOW_FORMATS
from latentfarm.server.context import ServerContext, context_of
from latentfarm.server.http.error_answer import as_request_error, error_body
from latentfarm.server.http.sse import ServerEvent, event_stream
from latentfarm.server.interactive.renderer import renderer_of
from latentfarm.server.interactive.rendering import Rendering
from latentfarm.server.openai.image_request import ImageRequest
from latentfarm.server.openai.usage import usage_of
from latentfarm.server.security.access import audit_batch

#: what the types of events begin with
GENERATION, EDIT = "image_generation", "image_edit"


async def image_stream(request: Request, wanted: ImageRequest, model: str, *, kind: str) -> Response:
    """Submit the images, and return the answer that streams them. A refused request has no stream.

    ``kind``: what the types of events begin with.
    """
    stack = AsyncExitStack()
    submitted = renderer_of(request).render(request, [wanted.row], model=model, partial_images=wanted.partial_images)
    rendering = await stack.enter_async_context(submitted)
    audit_batch(request, rendering.batch)
    return event_stream(_events(request, stack, rendering, wanted, kind))


async def _events(
    request: Request, stack: AsyncExitStack, rendering: Rendering, wanted: ImageRequest, kind: str
) -> AsyncIterator[ServerEvent]:
    """Yield the partial images as they come, and then each image."""
    context = context_of(request)
    async with stack:
        try:
            async for event in _image_events(context, rendering, wanted, kind):
                yield event
        except Exception as error:  # noqa: BLE001 (the status is sent, so the error is an event)
            found = as_request_error(error, str(request.state.request_id))
            yield ServerEvent(to_json(error_body(request.url.path, found)).decode(), event="error")


async def _image_events(
    context: ServerContext, rendering: Rendering, wanted: ImageRequest, kind: str
) -> AsyncIterator[ServerEvent]:
    if wanted.partial_images:
        async for preview in rendering.previews():
            request = rendering.requests[preview.index]
            yield await context.run(
                _encode, context, f"{kind}.partial_image", preview.body, request, partial_image_index=preview.number
            )
    for image in await rendering.images():
        request, usage = image.result["request"], usage_of([image.result])
        yield await context.run(_encode, context, f"{kind}.completed", image.body, request, usage=usage)


def _encode(context: ServerContext, kind: str, body: bytes, request: Mapping[str, Any], **more: object) -> ServerEvent:
    fields = {
        "type": kind,
        "b64_json": b64encode(body).decode("ascii"),
        "created_at": context.farm.ledger.now_s(),
        "size": _size(body, request),
        "quality": "auto",
        "background": "opaque",
        "output_format": request.get("image_format", "png"),
        **more,
    }
    return ServerEvent(to_json(fields).decode(), event=kind)


def _size(body: bytes, request: Mapping[str, Any]) -> str:
    width, height = request.get("width"), request.get("height")
    if not (width and height):
        # the model's native size
        with Image.open(BytesIO(body), formats=PILLOW_FORMATS) as image:
            width, height = image.size
    return f"{width}x{height}"
