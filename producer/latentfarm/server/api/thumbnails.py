"""Thumbnails: made when they are first requested, and kept in a folder of bounded size."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
from anyio import CapacityLimiter
from PIL import Image

from latentfarm.image_formats import PILLOW_FORMATS

SIDE = 256
#: thumbnails that are made at the same time: that needs a core each, and memory for an image
_MAX_RUNNING = min(4, os.cpu_count() or 1)
#: pixels of an image that is opened; latentfarm's own have fewer than a tenth. A small file can claim any number
_MAX_PIXELS = 64 * 2**20
#: share of the folder that stays when thumbnails are removed, so that this happens seldom
_KEPT_SHARE = 0.9
_SUFFIX = ".webp"


class UnreadableImageError(Exception):
    """The bytes are no image of a format and a size that latentfarm writes."""


class Thumbnails:
    """Makes and keeps thumbnails. Several servers may share a folder.

    Args:
        folder: created at the first thumbnail.
        limit_bytes: bytes in the folder; those unused for longest are removed beyond it.
        source: what distinguishes images of the same key: the farm's bucket.
    """

    def __init__(self, folder: Path, limit_bytes: int, *, source: str) -> None:
        self._cache = ThumbnailFolder(folder, limit_bytes)
        self._source = source
        self._threads = CapacityLimiter(_MAX_RUNNING)
        self._running: dict[str, asyncio.Task[bytes]] = {}

    async def get(self, key: str, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the thumbnail of an image. Requests for one that is being made wait for it.

        Args:
            key: the image's key, which names one content.
            read: returns the image.

        Raises:
            UnreadableImageError: it is no image.
        """
        name = hashlib.sha256(f"{self._source}\0{key}".encode()).hexdigest()
        task = self._running.get(name)
        if task is None:
            task = self._running[name] = asyncio.create_task(self._load(name, read))
            task.add_done_callback(partial(self._forget, name))
        # a client that hangs up must not end what others wait for
        return await asyncio.shield(task)

    def _forget(self, name: str, task: asyncio.Task[bytes]) -> None:
        del self._running[name]
        if not task.cancelled():
            # those who waited for it have raised it
            task.exception()

    async def _load(self, name: str, read: Callable[[], Awaitable[bytes]]) -> bytes:
        found = await anyio.to_thread.run_sync(self._cache.read, name, limiter=self._threads)
        if found is None:
            # a distant store delays many images at once, and the cores none
            found = await anyio.to_thread.run_sync(self._make, name, await read(), limiter=self._threads)
        return found

    def _make(self, name: str, image: bytes) -> bytes:
        made = make_thumbnail(image)
        # a full disk costs time only
        with suppress(OSError):
            self._cache.write(name, made)
        return made


def make_thumbnail(image: bytes) -> bytes:
    """Return an image as WebP of at most 256 pixels a side, without its metadata.

    Raises:
        UnreadableImageError: it is no PNG, WebP or JPEG, or too large.
    """
    try:
        with Image.open(io.BytesIO(image), formats=PILLOW_FORMATS) as opened:
            if opened.width * opened.height > _MAX_PIXELS:
                raise UnreadableImageError(f"it has {opened.width} x {opened.height} pixels")
            # a JPEG is decoded at a part of its size
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))
            small = opened.convert("RGB")
        # by whole numbers first, in a third of the time: 512 pixels are 256 then
        small.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=1.0)
        out = io.BytesIO()
        # the method of least effort: others take up to three times the CPU for 2 to 8 % fewer bytes
        small.save(out, "WEBP", quality=80, method=0)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(str(error)[:200]) from None
    return out.getvalue()


class ThumbnailFolder:
    """Files by name, of bounded size together. Thread-safe; other processes may use the folder too."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        #: bytes in the folder, as far as this process knows; None before the first write
        self._used: int | None = None
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None if there is none. It counts as used now."""
        path = self._path(name)
        try:
            found = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return found

    def write(self, name: str, content: bytes) -> None:
        """Store a file: other threads and processes see all of it or nothing."""
        path = self._path(name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as out:
            try:
                out.write(content)
                out.close()
                Path(out.name).replace(path)
            except BaseException:
                Path(out.name).unlink(missing_ok=True)
                raise
        with self._lock:
            if self._used is not None:
                self._used += len(content)
            if self._used is None or self._used > self._limit_bytes:
                self._used = self._shrink()

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / f"{name}{_SUFFIX}"

    def _shrink(self) -> int:
        """Remove what was unused for longest, if the folder is too large; return the bytes that are left."""
        files: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("??/*"):
            with suppress(OSError):
                found = path.stat()
                files.append((found.st_mtime, found.st_size, path))
        used = sum(size for _, size, _ in files)
        if used <= self._limit_bytes:
            return used
        for _, size, path in sorted(files):
            if used <= self._limit_bytes * _KEPT_SHARE:
                break
            with suppress(OSError):
                path.unlink()
                used -= size
        return used
