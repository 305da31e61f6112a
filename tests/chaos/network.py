"""The connections between workers, Redis and the store, and their faults: one thread with an event loop.

A ``Link`` is a TCP proxy in front of Redis, one for each worker; it can cut, delay, hold back and eat replies.
``S3Front`` is an HTTP proxy in front of the store; it can refuse, reset, be slow and be down.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from threading import Thread
from typing import Any, Self, TypeVar

from tests.chaos.faults import seeded

T = TypeVar("T")

_PIECE = 65536
_LONGEST_HEAD = 2**20
_CALL_S = 10.0
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class Network:
    """The event loop and its thread; a context manager."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = Thread(target=self.loop.run_forever, name="network", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CALL_S)
        self.loop.close()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(_CALL_S)

    def keep_current_task(self) -> None:
        """Hold the task that runs now until it ends: the event loop itself would let it be collected."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def listen(self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]) -> int:
        """Serve connections on a free port of this machine; return it."""
        server = self.call(self._listen(serve))
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _listen(self, serve: Callable[..., Coroutine[Any, Any, None]]) -> asyncio.Server:
        return await asyncio.start_server(serve, "127.0.0.1", 0, limit=_LONGEST_HEAD)

    async def _cancel_all(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Link:
    """A TCP port that leads to the unix socket of Redis."""

    def __init__(self, network: Network, socket: str, *, seed: int) -> None:
        self.delay_s = 0.0
        self.eat_share = 0.0
        self.eaten = 0
        self._network = network
        self._socket = socket
        self._random = seeded(seed)
        self._holds = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self.port = network.listen(self._serve)

    @property
    def url(self) -> str:
        """The way to Redis through this link."""
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        """Break every connection."""
        self._network.call(self._abort_all())

    def hold(self, *, back: bool) -> None:
        """Let nothing pass, in either direction, or let all pass that was held back: TCP sends it again.

        Two holds need two releases.
        """
        self._holds = max(0, self._holds + (1 if back else -1))
        self._network.loop.call_soon_threadsafe(self._passes.clear if self._holds else self._passes.set)

    def heal(self) -> None:
        """End every fault of the link."""
        self.delay_s = self.eat_share = 0.0
        self._holds = 0
        self._network.loop.call_soon_threadsafe(self._passes.set)

    async def _abort_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._network.keep_current_task()
        self._writers.add(writer)
        server_writer: asyncio.StreamWriter | None = None
        try:
            await self._passes.wait()
            server_reader, server_writer = await asyncio.open_unix_connection(self._socket)
            self._writers.add(server_writer)
            pumps = [
                asyncio.ensure_future(self._pump(reader, server_writer, replies=False)),
                asyncio.ensure_future(self._pump(server_reader, writer, replies=True)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # Redis is down, and the client sees a closed connection
        finally:
            for each in (writer, server_writer):
                if each is not None:
                    self._writers.discard(each)
                    each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._passes.wait()
                if replies and self._random.random() < self.eat_share:
                    self.eaten += 1
                    return
                writer.write(piece)
                await writer.drain()


class S3Front:
    """An HTTP port that leads to the store; ``counts`` has the requests by outcome."""

    def __init__(self, network: Network, port: int, *, seed: int) -> None:
        self.refuse_share = 0.0
        self.reset_share = 0.0
        self.slow_s = 0.0
        self.down = False
        self.counts: Counter[str] = Counter()
        self._network = network
        self._upstream = port
        self._random = seeded(seed)
        self.port = network.listen(self._serve)

    def heal(self) -> None:
        """End every fault of the store."""
        self.refuse_share = self.reset_share = self.slow_s = 0.0
        self.down = False

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
        if self.slow_s:
            await asyncio.sleep(self._random.uniform(0, 2 * self.slow_s))
        if self._random.random() < self.refuse_share:
            self.counts["503"] += 1
            fields = f"HTTP/1.1 503 Slow Down\r\nContent-Length: {len(_SLOW_DOWN)}\r\nConnection: close\r\n\r\n"
            writer.write(fields.encode() + _SLOW_DOWN)
            await writer.drain()
            return
        resets = self._random.random() < self.reset_share
        if resets and self._random.random() < 0.5:
            self.counts["reset before"] += 1
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            up_writer.write(head + body)
            await up_writer.drain()
            while piece := await up_reader.read(_PIECE):
                if resets:
                    self.counts["reset after"] += 1
                    writer.transport.abort()
                    return
                writer.write(piece)
                await writer.drain()
            self.counts["passed"] += 1
        finally:
            up_writer.close()


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
