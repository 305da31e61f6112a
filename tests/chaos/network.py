"""The connections between workers, Redis and the store, and their faults: one thread with an event loop.

A ``Link`` is a TCP proxy in front of Redis, one for each worker; it can cut, delay, hold back and eat replies.
The faults of the store are those of ``s3_front``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from threading import Thread
from typing import Any, Self, TypeVar

from tests.chaos.faults import seeded

T = TypeVar("T")

PIECE = 65536
_LONGEST_HEAD = 2**20
_CALL_S = 10.0


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
    """A TCP port that leads to the unix socket of Redis, for a user and a password if ``user`` has them."""

    def __init__(self, network: Network, socket: str, *, seed: int, user: str = "") -> None:
        self.delay_s = 0.0
        self.eat_share = 0.0
        self.eaten = 0
        self._network = network
        self._socket = socket
        self._user = f"{user}@" if user else ""
        self._random = seeded(seed)
        self._holds = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self.port = network.listen(self._serve)

    @property
    def url(self) -> str:
        """The way to Redis through this link."""
        return f"redis://{self._user}127.0.0.1:{self.port}/0"

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
            while piece := await reader.read(PIECE):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._passes.wait()
                if replies and self._random.random() < self.eat_share:
                    self.eaten += 1
                    return
                writer.write(piece)
                await writer.drain()
