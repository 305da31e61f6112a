"""Input images that come with a request: checked and stored before its rows are submitted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio
from anyio import CapacityLimiter
from starlette.requests import Request

from latentfarm.errors import InputError
from latentfarm.inputs.checks import check_image
from latentfarm.inputs.resolver import StoredInput
from latentfarm.inputs.sources import read_source
from latentfarm.inputs.store import digest_of, store_input
from latentfarm.server.context import ServerContext, of_server
from latentfarm.server.http.request_error import RequestError

Returned = TypeVar("Returned")

#: requests whose inputs are read at once: a URL may take half a minute, an image 200 MB while it is checked
_THREADS = 16


async def run_with_inputs(request: Request, function: Callable[..., Returned], *args: object) -> Returned:
    """Return what a function returns that reads input images, called on a thread apart from those of other requests."""
    limiter = of_server(request, "input_threads", partial(CapacityLimiter, _THREADS))
    return await anyio.to_thread.run_sync(partial(function, *args), limiter=limiter)


def store_image(
    context: ServerContext,
    name: str,
    content: bytes | str,
    convert: Callable[[bytes], bytes] | None = None,
) -> StoredInput:
    """Store an input image; blocks.

    Args:
        context: of the server.
        name: the client's name of the field.
        content: its bytes, or a source as rows have it.
        convert: returns the bytes to store.

    Raises:
        RequestError: 400, it is no image, or its source may not be used.
    """
    try:
        data = read_source(content, context.inputs) if isinstance(content, str) else content
        stored = data if convert is None else convert(data)
        width, height = check_image(stored)
    except InputError as error:
        raise RequestError(400, "invalid_image", f"{name} {error}", param=name) from None
    digest = digest_of(stored)
    store_input(context.farm.bucket, digest, stored)
    return StoredInput(digest, width, height)
