"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

#: seconds without an event until a comment is sent: proxies close silent connections after 30 to 60
KEEP_ALIVE_S = 15.0
_HEADERS = {
    "Cache-Control": "no-store",
    # nginx would collect the events
    "X-Accel-Buffering": "no",
}
_LINE_ENDS = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class ServerEvent:
    """One event. ``event`` and ``id`` hold no line end; a browser sends the last ``id`` when it connects again."""

    data: str
    event: str = ""
    id: str = ""

    def encode(self) -> bytes:
        """Return the event as it is sent."""
        lines = [f"{name}: {value}" for name, value in (("id", self.id), ("event", self.event)) if value]
        lines += [f"data: {line}" for line in _LINE_ENDS.split(self.data)]
        return ("\n".join(lines) + "\n\n").encode()


class EventStream(Response):
    """Sends events until the iterator ends, the client hangs up, or, if ``lasting``, the server begins to end."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[ServerEvent],
        *,
        keep_alive_s: float,
        lasting: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._events = events
        self._keep_alive_s = keep_alive_s
        self._lasting = lasting
        self.status_code = 200
        self.background = None
        self.init_headers({**_HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        context = scope["app"].state.context
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            if scope["method"] != "HEAD":
                with context.metrics.streams.track_inprogress():
                    await self._stream(receive, send, context.stopping)
        finally:
            with anyio.CancelScope(shield=True):
                await _close(self._events)
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self, receive: Receive, send: Send, stopping: anyio.Event) -> None:
        sender, receiver = anyio.create_memory_object_stream[ServerEvent](0)
        failures: list[Exception] = []
        async with anyio.create_task_group() as tasks:

            async def produce() -> None:
                # a generator must be closed by the task that runs it
                try:
                    await _produce(self._events, sender)
                except Exception as error:  # noqa: BLE001 (raised below, outside of the task group)
                    failures.append(error)

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            async def watch_end() -> None:
                await stopping.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(produce)
            tasks.start_soon(watch)
            if self._lasting:
                tasks.start_soon(watch_end)
            await _forward(receiver, send, self._keep_alive_s)
            tasks.cancel_scope.cancel()
        if failures:
            raise failures[0]


async def _produce(events: AsyncIterator[ServerEvent], sender: MemoryObjectSendStream[ServerEvent]) -> None:
    with sender:
        try:
            async for event in events:
                await sender.send(event)
        finally:
            with anyio.CancelScope(shield=True):
                await _close(events)


async def _forward(receiver: MemoryObjectReceiveStream[ServerEvent], send: Send, keep_alive_s: float) -> None:
    with receiver:
        while True:
            body = b": still here\n\n"
            try:
                with anyio.move_on_after(keep_alive_s):
                    body = (await receiver.receive()).encode()
            except anyio.EndOfStream:
                return
            await send({"type": "http.response.body", "body": body, "more_body": True})


async def _close(events: AsyncIterator[ServerEvent]) -> None:
    if close := getattr(events, "aclose", None):
        await close()


def event_stream(
    events: AsyncIterator[ServerEvent], *, lasting: bool = False, headers: Mapping[str, str] | None = None
) -> EventStream:
    """Return an answer of events. ``lasting``: it has no end of its own, so it ends as soon as the server is to end."""
    return EventStream(events, keep_alive_s=KEEP_ALIVE_S, lasting=lasting, headers=headers)
