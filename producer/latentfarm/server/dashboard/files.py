"""Answer with the files of the dashboard. They are read once, at the start, so no request names a path of the disk."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError

_PAGE = "index.html"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: paths of the page: its own script chooses the view
_VIEWS = ("/", "/batches/{name}", "/batches/{name}/{view}", "/batches/{name}/images/{index}", "/workers", "/submit")


@dataclass(frozen=True)
class _File:
    content: bytes
    zipped: bytes
    etag: str
    media_type: str


@cache
def _static_files() -> dict[str, _File]:
    """Return the files of the dashboard by their paths below ``static``."""
    return {path: _read(path, source) for path, source in _walk(files(__package__) / "static")}


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry


def _read(path: str, source: Traversable) -> _File:
    content = source.read_bytes()
    etag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    return _File(content, gzip.compress(content, mtime=0), etag, _MEDIA_TYPES[PurePosixPath(path).suffix])


async def show_page(request: Request) -> Response:
    return _answer(request, _PAGE)


async def show_file(request: Request) -> Response:
    return _answer(request, request.path_params["path"])


def _answer(request: Request, path: str) -> Response:
    found = _static_files().get(path)
    if found is None:
        raise RequestError(404, "not_found", f"the dashboard has no file {path[:100]!r}; begin at /")
    # revalidated each time: after an upgrade, a page must not have modules of two versions
    headers = {"ETag": found.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(found.zipped, headers=headers | {"Content-Encoding": "gzip"}, media_type=found.media_type)
    return Response(found.content, headers=headers, media_type=found.media_type)


OPERATIONS: tuple[Operation, ...] = (
    # without a key: the files are public, and the page shows nothing of the farm before a session begins
    *(Operation("GET", path, show_page, Scope.NONE, "Show the dashboard", media_type="text/html") for path in _VIEWS),
    Operation("GET", "/dashboard/{path:path}", show_file, Scope.NONE, "Return a file of the dashboard"),
)
