"""Events of the farm as server-sent events, which a client resumes where it was cut off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from math import floor
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from latentfarm.batch_kind import BatchKind
from latentfarm.errors import LatentfarmError, UnavailableError
from latentfarm.ledger import SlotsReport
from latentfarm.ledger.events import Event, event_order
from latentfarm.server.api.batches import active_answers, batch_answer
from latentfarm.server.api.images import preview_path
from latentfarm.server.api.models import EventsQuery
from latentfarm.server.api.polled import PolledAnswers, polled_answers
from latentfarm.server.api.request import read_query
from latentfarm.server.api.slot_events import slots_event
from latentfarm.server.api.state_blocks import StatesSnapshot, WatchedStates, watched_states
from latentfarm.server.context import ServerContext, context_of
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.http.sse import ServerEvent, event_stream
from latentfarm.server.live.hub import SlowSubscriberError, Subscription

if TYPE_CHECKING:
    from latentfarm.server.live.hub import Item

#: seconds between two reports of progress
_PROGRESS_S = 0.5
#: events that one read of the ledger returns
_LIMIT = 1_000


async def stream_events(request: Request) -> Response:
    query = read_query(request, EventsQuery)
    context = context_of(request)
    after = _last_event_id(request) or query.after
    if query.states is not None and not query.batch:
        raise RequestError(400, "invalid_request", "states needs a batch; write its name as batch", param="states")
    if query.batch:
        # a client that connects again learns that the batch is deleted, and ends
        await context.run(context.farm.ledger.require_batch, query.batch)
    stream = _Stream(context, polled_answers(request), watched_states(request), query, after)
    return event_stream(stream.run(), lasting=True)


def _last_event_id(request: Request) -> str:
    after = request.headers.get("last-event-id", "")
    try:
        EventsQuery(after=after)
    except ValidationError:
        text = f"Last-Event-ID {after[:40]!r}: write the id of an event, or leave it out"
        raise RequestError(400, "invalid_request", text, param="after") from None
    return after


class _Stream:
    """The events of one client."""

    def __init__(
        self, context: ServerContext, answers: PolledAnswers, states: WatchedStates, query: EventsQuery, after: str
    ) -> None:
        self._context = context
        self._answers = answers
        self._watched_states = states
        self._query = query
        self._sent = after
        self._progress = b""
        self._states: StatesSnapshot | None = None
        self._outage = False
        #: what is sent at most twice a second
        self._reports: list[Callable[[], Awaitable[ServerEvent | None]]] = []
        if query.progress:
            self._reports.append(self._report_progress)
        if query.states is not None:
            self._reports.append(self._report_states)

    async def run(self) -> AsyncIterator[ServerEvent]:
        """Yield the events since the last one that the client has, then those to come."""
        hub = self._context.hub
        with suppress(SlowSubscriberError), hub.watched_workers.watch(self._query.worker):
            async with hub.subscribe(self._wants) as items:
                if self._sent:
                    async for event in self._missed():
                        yield event
                else:
                    self._sent = hub.latest_id
                # what a client reads after this has every change before it
                yield ServerEvent("{}", "ready", self._sent)
                async for event in self._follow(items):
                    yield event

    def _wants(self, item: Item) -> bool:
        if isinstance(item, Event):
            return self._query.batch in {"", item.batch} and (bool(self._query.batch) or self._is_listed(item.kind))
        if isinstance(item, SlotsReport):
            return item.worker in self._query.worker
        return self._query.live and (not self._query.batch or item.job.rpartition("/")[0] == self._query.batch)

    def _is_listed(self, kind: BatchKind | None) -> bool:
        """Return whether events of this kind of batches are wanted; None: they are of a worker."""
        if self._query.kind is None:
            return kind is not BatchKind.INTERACTIVE
        return kind in {None, self._query.kind}

    async def _missed(self) -> AsyncIterator[ServerEvent]:
        ledger = self._context.farm.ledger
        while True:
            found = await self._context.run(ledger.read_events, self._sent, limit=_LIMIT)
            for event in found:
                if self._wants(event):
                    yield _change(event)
                self._sent = event.id
            if len(found) < _LIMIT:
                return

    async def _follow(self, items: Subscription) -> AsyncIterator[ServerEvent]:
        due = 0.0
        coming = asyncio.ensure_future(anext(items))
        try:
            while True:
                wait_s = max(0.0, due - time.monotonic()) if self._reports else None
                await asyncio.wait({coming}, timeout=wait_s)
                if coming.done():
                    try:
                        item = coming.result()
                    except StopAsyncIteration:
                        return
                    coming = asyncio.ensure_future(anext(items))
                    if (event := self._encode(item)) is not None:
                        yield event
                if self._reports and time.monotonic() >= due:
                    # all clients at the same moment, so that the ledger is read once for all of them
                    due = floor(time.monotonic() / _PROGRESS_S + 1) * _PROGRESS_S
                    async for event in self._report():
                        yield event
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, SlowSubscriberError):
                await coming

    def _encode(self, item: Item) -> ServerEvent | None:
        if isinstance(item, SlotsReport):
            return slots_event(item)
        if not isinstance(item, Event):
            report = {**asdict(item), "preview": preview_path(item.preview)}
            return ServerEvent(to_json(report).decode(), "live")
        if event_order(item.id) <= event_order(self._sent):
            return None
        self._sent = item.id
        return _change(item)

    async def _report(self) -> AsyncIterator[ServerEvent]:
        """Yield what has changed of the counters and of the states, or that an outage has begun or ended."""
        try:
            for report in self._reports:
                event = await report()
                if self._outage:
                    self._outage = False
                    yield ServerEvent('{"unavailable":false}', "outage")
                if event is not None:
                    yield event
        except UnavailableError:
            if not self._outage:
                self._outage = True
                yield ServerEvent('{"unavailable":true}', "outage")
        except LatentfarmError:
            # such as a batch that is deleted, which is an event as well
            return

    async def _report_progress(self) -> ServerEvent | None:
        """Return the counters, if they have changed: of the batch, or of all active batches of these kinds."""
        if self._query.batch:
            found = await self._answers.get(batch_answer, self._query.batch)
        else:
            found = await self._answers.get(active_answers, self._query.kind)
        if found == self._progress:
            return None
        self._progress = found
        return ServerEvent(found.decode(), "progress")

    async def _report_states(self) -> ServerEvent | None:
        """Return the blocks of states that have changed, if any have."""
        start = self._query.states or 0
        self._states, data = await self._watched_states.next_event(self._query.batch, start, self._states)
        return ServerEvent(data, "states") if data else None


def _change(event: Event) -> ServerEvent:
    return ServerEvent(to_json(asdict(event)).decode(), "change", event.id)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/api/events",
        stream_events,
        Scope.READ,
        "Stream changes and progress as server-sent events",
        query=EventsQuery,
        media_type="text/event-stream",
    ),
)
