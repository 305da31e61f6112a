"""Stores uploads while they are received. At most two parts of each are in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from latentfarm.errors import UnavailableError
from latentfarm.server.context import ServerContext
from latentfarm.server.http.request_error import RequestError
from latentfarm.storage.multipart_upload import MAX_PARTS, MIN_PART_BYTES, MultipartUpload

#: uploads that a server receives at once: each may have two parts in memory
_MAX_UPLOADS = 16
_RETRY_S = 5


class UploadSlots:
    """Bounds the uploads that one server receives at once."""

    def __init__(self) -> None:
        self._taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a slot.

        Raises:
            RequestError: 503, there is none.
        """
        if self._taken == _MAX_UPLOADS:
            text = f"the server receives {_MAX_UPLOADS} files now, its limit; try again later"
            raise RequestError(503, "too_many_uploads", text, retry_after_s=_RETRY_S)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class Upload:
    """One object of the bucket. One part is stored while the next is received.

    Args:
        context: of the server.
        key: the object's key.
        limit: bytes that it may have.
    """

    def __init__(self, context: ServerContext, key: str, *, limit: int) -> None:
        self._context = context
        self._key = key
        self._limit = limit
        self._part_bytes = max(MIN_PART_BYTES, -(-limit // MAX_PARTS))
        self._buffer = bytearray()
        self._multipart: MultipartUpload | None = None
        self._storing: asyncio.Task[None] | None = None
        #: bytes so far
        self.size = 0
        self._line_ends, self._last = 0, b"\n"

    @property
    def lines(self) -> int:
        """Lines so far."""
        return self._line_ends + (self._last != b"\n")

    async def write(self, data: bytes) -> None:
        """Add bytes. Waits if the store is slower than the client.

        Raises:
            RequestError: 413, the file is too large.
            UnavailableError: the store does not answer.
        """
        self.size += len(data)
        if self.size > self._limit:
            raise RequestError(
                413, "file_too_large", f"the file is larger than {self._limit} bytes; split it", param="file"
            )
        self._line_ends += data.count(b"\n")
        self._last = data[-1:] or self._last
        self._buffer += data
        if len(self._buffer) >= self._part_bytes:
            await self._wait()
            part, self._buffer = self._buffer, bytearray()
            self._storing = asyncio.create_task(self._context.run(self._put_part, part))

    async def finish(self) -> None:
        """Store the rest. The object exists then."""
        await self._wait()
        await self._context.run(self._complete)

    async def abandon(self) -> None:
        """Remove what is stored. The object does not exist then."""
        if self._storing is not None:
            with suppress(UnavailableError):
                await self._wait()
        await self._context.run(self._remove)

    async def _wait(self) -> None:
        if self._storing is not None:
            # a request that is cancelled leaves its thread running
            await asyncio.shield(self._storing)
            self._storing = None

    def _put_part(self, part: bytearray) -> None:
        if self._multipart is None:
            self._multipart = MultipartUpload(self._context.farm.bucket, self._key)
        self._multipart.put_part(part)

    def _complete(self) -> None:
        if self._multipart is None:
            self._context.farm.bucket.put(self._key, bytes(self._buffer))
            return
        if self._buffer:
            self._multipart.put_part(self._buffer)
        self._multipart.complete()

    def _remove(self) -> None:
        if self._multipart is not None:
            self._multipart.abort()
        with suppress(UnavailableError):
            self._context.farm.bucket.delete([self._key])
