"""Images of jobs, and their thumbnails."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from latentfarm.farm import Farm
from latentfarm.image_formats import IMAGE_FORMATS, PNG, format_of
from latentfarm.job_state import JobState
from latentfarm.server.api.jobs import check_index
from latentfarm.server.api.models import ImageQuery, IntermediatesQuery, PreviewQuery, ThumbnailQuery
from latentfarm.server.api.request import batch_name, job_index, read_query
from latentfarm.server.api.threads import run_with_bucket
from latentfarm.server.api.thumbnails import Thumbnails, UnreadableImageError
from latentfarm.server.context import ServerContext, context_of, of_server
from latentfarm.server.http.operation import Operation, Rate, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.storage.bucket import MissingObjectError
from latentfarm.storage.keys import (
    draft_key,
    image_key,
    intermediates_key,
    parse_draft_key,
    parse_image_key,
    parse_preview_key,
    preview_key,
)
from latentfarm.storage.parallel_get import DamagedObjectError
from latentfarm.storage.results import read_range

#: an image of one epoch never changes
_IMMUTABLE = "private, max-age=31536000, immutable"
_REVALIDATED = "private, no-cache"


@dataclass(frozen=True)
class _Image:
    """An image in the bucket. ``sha256`` is empty if its receipt was not read."""

    key: str
    epoch: int
    sha256: str = ""


async def show_image(request: Request) -> Response:
    query = read_query(request, ImageQuery)
    context = context_of(request)
    found = await _find(request, query)
    headers = _headers(found, query.epoch)
    if query.redirect:
        url = await context.run(context.farm.bucket.presign, found.key, expires_s=context.settings.url_expires_s)
        return RedirectResponse(url, 307, headers={"Cache-Control": "no-store"})
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    body = await _read(request, found)
    kind = (format_of(found.key) or PNG).content_type
    return Response(body, headers=headers, media_type=kind)


async def show_thumbnail(request: Request) -> Response:
    query = read_query(request, ThumbnailQuery)
    context = context_of(request)
    found = await _find(request, query)
    headers = _headers(found, query.epoch)
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    try:
        body = await _thumbnails(request, context).get(found.key, lambda: _read(request, found))
    except UnreadableImageError as error:
        raise RequestError(404, "unreadable_image", f"the image cannot be read: {error}") from None
    return Response(body, headers=headers, media_type="image/webp")


async def show_intermediates(request: Request) -> Response:
    query = read_query(request, IntermediatesQuery)
    context, name, index = context_of(request), batch_name(request), job_index(request)
    if query.epoch is None:
        found = await run_with_bucket(request, _find_strip, context.farm, name, index)
    else:
        await context.run(context.farm.ledger.require_batch, name)
        found = _Image(intermediates_key(name, index, query.epoch), query.epoch)
    headers = _headers(found, query.epoch)
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    body = await _read(request, found)
    return Response(body, headers=headers, media_type=PNG.content_type)


async def show_preview(request: Request) -> Response:
    query = read_query(request, PreviewQuery)
    context, name, index = context_of(request), batch_name(request), job_index(request)
    key = preview_key(name, index, query.epoch, query.number, IMAGE_FORMATS[query.format])
    await context.run(context.farm.ledger.require_batch, name)
    body = await _read(request, _Image(key, query.epoch))
    return Response(body, headers={"Cache-Control": _IMMUTABLE}, media_type=IMAGE_FORMATS[query.format].content_type)


def preview_path(key: str) -> str | None:
    """Return the path on this server of a partial image, None for any other key."""
    found, image_format = parse_preview_key(key), format_of(key)
    if found is None or image_format is None:
        return None
    index, epoch, number = found
    batch = key.removeprefix("batches/").partition("/")[0]
    return f"/api/batches/{batch}/previews/{index}?epoch={epoch}&number={number}&format={image_format.name}"


def _thumbnails(request: Request, context: ServerContext) -> Thumbnails:
    """Return the thumbnails of this server."""
    settings, source = context.settings, context.farm.bucket.where
    make = partial(Thumbnails, settings.thumbnail_cache, settings.thumbnail_cache_bytes, source=source)
    return of_server(request, "thumbnails", make)


async def _find(request: Request, query: ThumbnailQuery) -> _Image:
    """Return the image of a job, or the preview of a draft.

    With epoch and format, only the batch is looked up: a page has many images, and a receipt is a part of results.
    """
    context, name, index = context_of(request), batch_name(request), job_index(request)
    if query.epoch is not None and query.format is not None:
        await context.run(context.farm.ledger.require_batch, name)
        key_of = draft_key if query.draft else image_key
        return _Image(key_of(name, index, query.epoch, IMAGE_FORMATS[query.format]), query.epoch)
    return await run_with_bucket(request, _find_receipt, context.farm, name, index, query)


def _find_strip(farm: Farm, name: str, index: int) -> _Image:
    line = _read_receipt(farm, name, index, JobState.DONE)
    strip = line.get("intermediates")
    if not isinstance(strip, dict) or parse_image_key(strip["key"]) is None:
        text = f"job {name}/{index} has no intermediate images; submit it with save_intermediates"
        raise RequestError(404, "no_image", text)
    return _Image(strip["key"], line["epoch"], strip["sha256"])


def _read_receipt(farm: Farm, name: str, index: int, state: JobState) -> dict[str, Any]:
    check_index(farm, name, index)
    line = next(read_range(farm.ledger, farm.bucket, name, range(index, index + 1)))
    if line["state"] == state.word:
        return line
    text = f"job {name}/{index} is {line['state']}; only a {state.word} job has "
    if state is JobState.DRAFTED:
        text += "a preview: leave out draft"
    else:
        text += "an image" + (": write draft=1 for its preview" if line["state"] == JobState.DRAFTED.word else "")
    raise RequestError(404, "no_image", text)


def _find_receipt(farm: Farm, name: str, index: int, query: ThumbnailQuery) -> _Image:
    state, parse = (JobState.DRAFTED, parse_draft_key) if query.draft else (JobState.DONE, parse_image_key)
    line = _read_receipt(farm, name, index, state)
    found = _Image(line["key"], line["epoch"], line["sha256"])
    if query.epoch not in {None, found.epoch} or parse(found.key) is None:
        raise RequestError(404, "no_image", f"job {name}/{index} has another image now; leave out epoch", param="epoch")
    return found


async def _read(request: Request, image: _Image) -> bytes:
    try:
        return await run_with_bucket(request, context_of(request).images.read, image.key, image.sha256)
    except MissingObjectError:
        raise RequestError(404, "no_image", "the bucket has no such image") from None
    except DamagedObjectError:
        text = "the image in the bucket is not the one of the receipt; run `verify`"
        raise RequestError(404, "damaged_image", text) from None


def _headers(image: _Image, epoch: int | None) -> dict[str, str]:
    return {"ETag": f'"{image.epoch}"', "Cache-Control": _REVALIDATED if epoch is None else _IMMUTABLE}


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/api/batches/{name}/images/{index}",
        show_image,
        Scope.READ,
        "Return the image of a job, or with draft=1 the preview of a draft",
        rate=Rate.IMAGES,
        query=ImageQuery,
        media_type="image/*",
        also=(304, 307),
    ),
    Operation(
        "GET",
        "/api/batches/{name}/intermediates/{index}",
        show_intermediates,
        Scope.READ,
        "Return the intermediate images of a job as a strip, from noise to result",
        rate=Rate.IMAGES,
        query=IntermediatesQuery,
        media_type="image/png",
        also=(304,),
    ),
    Operation(
        "GET",
        "/api/batches/{name}/previews/{index}",
        show_preview,
        Scope.READ,
        "Return a partial image of a job, which a live event has named",
        rate=Rate.IMAGES,
        query=PreviewQuery,
        media_type="image/*",
    ),
    Operation(
        "GET",
        "/api/batches/{name}/thumbnails/{index}",
        show_thumbnail,
        Scope.READ,
        "Return a thumbnail of a job's image: WebP, at most 256 pixels wide and high",
        rate=Rate.IMAGES,
        query=ThumbnailQuery,
        media_type="image/webp",
        also=(304,),
    ),
)
