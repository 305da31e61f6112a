"""Images that a client of the web UI waits for, how far they are, and their end."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from latentfarm.batch import Batch
from latentfarm.farm import Farm
from latentfarm.inputs.masks import inverted_mask
from latentfarm.server.a1111.image_to_image import read_image_to_image
from latentfarm.server.a1111.info import info_text
from latentfarm.server.a1111.models import chosen_model
from latentfarm.server.a1111.running_images import find_batches, progress_of, running_images
from latentfarm.server.a1111.text_to_image import TextToImage, read_text_to_image
from latentfarm.server.context import context_of
from latentfarm.server.http.body import read_json
from latentfarm.server.http.disconnect import cancel_on_disconnect
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.interactive.inputs import run_with_inputs, store_image
from latentfarm.server.interactive.models import await_models, resolve_model
from latentfarm.server.interactive.renderer import renderer_of
from latentfarm.server.security.access import access_of, audit_batch


async def text_to_image(request: Request) -> Response:
    """Render the images of a prompt, and answer with all of them."""
    limit = context_of(request).settings.max_image_body_bytes
    return await _render(request, read_text_to_image(await read_json(request, limit=limit)))


async def image_to_image(request: Request) -> Response:
    """Render images that begin with an image, and answer with all of them."""
    context = context_of(request)
    found = read_image_to_image(await read_json(request, limit=context.settings.max_image_body_bytes))
    if found.inverted:
        mask = found.wanted.rows[0]["mask_image"]
        inverted = await run_with_inputs(request, store_image, context, "mask", mask, inverted_mask)
        for row in found.wanted.rows:
            row["mask_image"] = inverted.digest
    return await _render(request, found.wanted)


async def _render(request: Request, wanted: TextToImage) -> Response:
    context = context_of(request)
    async with cancel_on_disconnect(request):
        await await_models(context)
    model = await resolve_model(context, wanted.model) if wanted.model else await chosen_model(request)
    renderer, running = renderer_of(request), running_images(request)
    async with (
        cancel_on_disconnect(request),
        renderer.render(request, wanted.rows, model=model) as rendering,
        running.follow(context.hub, rendering.batch),
    ):
        audit_batch(request, rendering.batch)
        images = await rendering.images()
    found = [(image.body, image.result) for image in images]
    # megabytes: not on the event loop
    return Response(await context.run(_answer, wanted, found), media_type="application/json")


def _answer(wanted: TextToImage, images: list[tuple[bytes, dict[str, Any]]]) -> bytes:
    answer = {
        "images": [b64encode(body).decode() for body, _ in images] if wanted.send_images else [],
        "parameters": wanted.parameters,
        "info": info_text(images, batch_size=wanted.batch_size, notes=wanted.notes),
    }
    return json.dumps(answer).encode()


async def get_progress(request: Request) -> Response:
    """Answer with the progress of the images that clients of the key wait for."""
    context = context_of(request)
    batches = await context.run(find_batches, context.farm, access_of(request).name)
    return JSONResponse(progress_of(batches, running_images(request)))


async def interrupt(request: Request) -> Response:
    """Cancel the images that clients of the key wait for."""
    context = context_of(request)
    await context.run(_cancel, context.farm, access_of(request).name)
    return JSONResponse({})


def _cancel(farm: Farm, owner: str) -> None:
    for batch in find_batches(farm, owner):
        Batch(farm.connection, batch.name).cancel()


OPERATIONS = (
    Operation("POST", "/sdapi/v1/txt2img", text_to_image, Scope.SUBMIT, "Render images of a prompt", audited=True),
    Operation(
        "POST",
        "/sdapi/v1/img2img",
        image_to_image,
        Scope.SUBMIT,
        "Render images that begin with an image",
        audited=True,
    ),
    Operation("GET", "/sdapi/v1/progress", get_progress, Scope.READ, "Get the progress of images"),
    Operation("POST", "/sdapi/v1/interrupt", interrupt, Scope.SUBMIT, "Cancel images", audited=True),
)
