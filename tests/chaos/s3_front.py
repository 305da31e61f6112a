"""An HTTP port in front of the store, on the network's event loop, with the faults of a store.

It refuses, resets, is slow and is down; it freezes, cuts bodies short, answers with an error within a 200, does not
find what was put a moment ago, and its clock is off.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from email.utils import formatdate

from tests.chaos.faults import seeded
from tests.chaos.network import PIECE, Network

#: the part of the requests that have a fault which spares some
SHARE = 0.3
#: seconds after its put for which an object is not found
MISSING_S = 3.0
_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>{}</Message></Error>"
_SLOW_DOWN = _ERROR.format("SlowDown", "Please reduce your request rate.").encode()
_INTERNAL = _ERROR.format("InternalError", "We encountered an internal error. Please try again.").encode()
_NO_KEY = _ERROR.format("NoSuchKey", "The specified key does not exist.").encode()


class S3Front:
    """An HTTP port that leads to the store; ``counts`` has the requests by outcome."""

    def __init__(self, network: Network, port: int, *, seed: int) -> None:
        self.refuse_share = 0.0
        self.reset_share = 0.0
        self.slow_s = 0.0
        self.down = False
        self.frozen = False
        self.truncate_share = 0.0
        self.error_share = 0.0
        #: objects are missing for so long after their put
        self.missing_s = 0.0
        #: seconds that the clock of the store is ahead
        self.skew_s = 0.0
        self.counts: Counter[str] = Counter()
        self._put_at: dict[bytes, float] = {}
        self._network = network
        self._upstream = port
        self._random = seeded(seed)
        self.port = network.listen(self._serve)

    def heal(self) -> None:
        """End every fault of the store."""
        self.refuse_share = self.reset_share = self.slow_s = self.truncate_share = self.error_share = 0.0
        self.missing_s = self.skew_s = 0.0
        self.down = self.frozen = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._network.keep_current_task()
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await self._answer(reader, writer)
        writer.transport.abort() if self.down else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            self.counts["down"] += 1
            return
        head, body = await _read_request(reader, writer)
        if self.frozen:
            # never answered, also not when others are again; the client hangs up
            self.counts["frozen"] += 1
            await reader.read()
            return
        if self.slow_s:
            await asyncio.sleep(self._random.uniform(0, 2 * self.slow_s))
        method, path = head.split(b" ", 2)[:2]
        if own := self._own_answer(method, path.partition(b"?")[0]):
            what, status, text = own
            self.counts[what] += 1
            fields = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n"
            date = formatdate(time.time() + self.skew_s, usegmt=True)
            writer.write(f"{fields}Date: {date}\r\nConnection: close\r\n\r\n".encode())
            writer.write(b"" if method == b"HEAD" else text)
            await writer.drain()
            return
        await self._pass(head + body, writer, method, path.partition(b"?")[0])

    def _own_answer(self, method: bytes, path: bytes) -> tuple[str, str, bytes] | None:
        """Return an answer that is not the store's: what it is, its status and its body."""
        if self._random.random() < self.refuse_share:
            return "503", "503 Slow Down", _SLOW_DOWN
        if method != b"HEAD" and self._random.random() < self.error_share:
            return "error within 200", "200 OK", _INTERNAL
        age_s = time.monotonic() - self._put_at.get(path, -MISSING_S)
        if method in {b"GET", b"HEAD"} and age_s < self.missing_s:
            return "404 after a put", "404 Not Found", _NO_KEY
        return None

    async def _pass(self, request: bytes, writer: asyncio.StreamWriter, method: bytes, path: bytes) -> None:
        """Have the store answer; the answer may be reset or cut."""
        resets = self._random.random() < self.reset_share
        if resets and self._random.random() < 0.5:
            self.counts["reset before"] += 1
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            up_writer.write(request)
            await up_writer.drain()
            head = await up_reader.readuntil(b"\r\n\r\n")
            if method == b"PUT" and self.missing_s:
                self._put_at[path] = time.monotonic()
            if resets:
                self.counts["reset after"] += 1
                writer.transport.abort()
                return
            writer.write(self._shifted(head) if self.skew_s else head)
            cuts = method == b"GET" and self._random.random() < self.truncate_share
            while piece := await up_reader.read(PIECE):
                if cuts:
                    self.counts["truncated"] += 1
                    writer.write(piece[: len(piece) // 2])
                    await writer.drain()
                    return
                writer.write(piece)
                await writer.drain()
            self.counts["passed, clock off" if self.skew_s else "passed"] += 1
        finally:
            up_writer.close()

    def _shifted(self, head: bytes) -> bytes:
        """Return the head with the date of a clock that is off."""
        date = f"Date: {formatdate(time.time() + self.skew_s, usegmt=True)}".encode()
        fields = [field for field in head[:-4].split(b"\r\n") if not field.lower().startswith(b"date:")]
        return b"\r\n".join([*fields, date, b"", b""])


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bytes]:
    """Return the head, made to end its connection, and the body of a request."""
    head = await reader.readuntil(b"\r\n\r\n")
    kept, length, chunked = [], 0, False
    for field in head[:-4].split(b"\r\n"):
        name, _, value = field.partition(b":")
        match name.lower():
            case b"expect":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await writer.drain()
                continue
            case b"connection":
                continue
            case b"content-length":
                length = int(value)
            case b"transfer-encoding":
                chunked = True
        kept.append(field)
    body = await _read_chunks(reader) if chunked else await reader.readexactly(length)
    return b"\r\n".join([*kept, b"Connection: close", b"", b""]), body


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        size = await reader.readuntil(b"\r\n")
        chunk = await reader.readexactly(int(size.split(b";")[0], 16) + 2)
        body += size + chunk
        if len(chunk) == 2:
            return body
