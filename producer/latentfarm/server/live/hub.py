"""Follows the events of the ledger on threads of its own, and passes them to the server's clients."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from latentfarm.errors import LatentfarmError
from latentfarm.ledger import Ledger, SlotsReport
from latentfarm.ledger.events import Event, event_order
from latentfarm.ledger.live_reports import LiveReport
from latentfarm.server.live.watched_workers import WatchedWorkers

Item = Event | LiveReport | SlotsReport
Items = Sequence[Event] | Sequence[LiveReport] | Sequence[SlotsReport]

log = logging.getLogger(__name__)

#: items that wait for a client; one that falls further behind is dropped
_MAX_WAITING = 1_000
#: seconds of one wait for the ledger
_BLOCK_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


class SlowSubscriberError(Exception):
    """A client did not take its events; it reads them again from the last one that it has."""


class Subscription:
    """The items that one client wants, in order. An asynchronous iterator; it ends when the hub closes.

    Raises:
        SlowSubscriberError: the client fell behind.
    """

    def __init__(self, wanted: Callable[[Item], bool]) -> None:
        self._wanted = wanted
        self._items: deque[Item] = deque()
        self._changed = asyncio.Event()
        self._closed = False
        self._dropped = False

    def put(self, items: Items) -> None:
        """Add those of the items that the client wants. Of the slots of a worker, only the newest ones wait."""
        if self._dropped or self._closed:
            return
        for item in filter(self._wanted, items):
            if isinstance(item, SlotsReport):
                self._items = deque(each for each in self._items if not _is_of(each, item.worker))
            self._items.append(item)
        if len(self._items) > _MAX_WAITING:
            self._dropped = True
            self._items.clear()
        if self._items or self._dropped:
            self._changed.set()

    def close(self) -> None:
        """End the iteration after the items that wait."""
        self._closed = True
        self._changed.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Item:
        while not self._items:
            if self._dropped:
                raise SlowSubscriberError
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._items.popleft()


def _is_of(item: Item, worker: str) -> bool:
    """Return whether an item is the slots of a worker."""
    return isinstance(item, SlotsReport) and item.worker == worker


class EventHub:
    """Follows the events and reports of a farm, once for all clients. Redis may be unavailable meanwhile.

    ``run`` is entered by the application's life; ``subscribe`` works within it, on its event loop.

    Attributes:
        watched_workers: the workers whose slots are reported, while at least one client watches them.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._subscriptions: set[Subscription] = set()
        self._stopping = threading.Event()
        self.watched_workers = WatchedWorkers()
        self._loop: asyncio.AbstractEventLoop | None = None
        #: id of the last event, empty before the first answer of Redis
        self.latest_id = ""

    @asynccontextmanager
    async def subscribe(self, wanted: Callable[[Item], bool]) -> AsyncIterator[Subscription]:
        """Provide the items from now on for which ``wanted`` is true. It is called for every item, so it is quick."""
        subscription = Subscription(wanted)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Follow the farm meanwhile."""
        self._loop = asyncio.get_running_loop()
        followed = {"events": self._follow_events, "live reports": self._follow_reports, "slots": self._follow_slots}
        for name, follow in followed.items():
            threading.Thread(target=self._keep, args=(follow, name), name=name, daemon=True).start()
        try:
            yield
        finally:
            # the threads end after their current wait; a Redis that hangs must not delay the end
            self._stopping.set()
            for subscription in self._subscriptions:
                subscription.close()

    def _keep(self, follow: Callable[[], None], name: str) -> None:
        """Call ``follow`` until the end, again after each outage, which is logged once."""
        reported = ""
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                follow()
            except LatentfarmError as error:
                if str(error) != reported:
                    log.warning("the %s are not followed now: %s", name, error)
                    reported = str(error)
            except Exception:
                log.exception("the %s are not followed now", name)
            if time.monotonic() - began > _LONGEST_PAUSE_S:
                # it was well in between
                reported, pause_s = "", _FIRST_PAUSE_S
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _follow_events(self) -> None:
        latest = self._ledger.last_event_id()
        if not self.latest_id or event_order(latest) < event_order(self.latest_id):
            # the first time, or a Redis that has lost its latest events
            self.latest_id = latest
        while not self._stopping.is_set():
            if events := self._ledger.read_events(self.latest_id, block_s=_BLOCK_S):
                self.latest_id = events[-1].id
                self._pass_on(events)

    def _follow_reports(self) -> None:
        with self._ledger.live_reports() as reports:
            while not self._stopping.is_set():
                if found := reports.wait(_BLOCK_S):
                    self._pass_on(found)

    def _follow_slots(self) -> None:
        self.watched_workers.follow(self._ledger, self._stopping, self._pass_on)

    def _pass_on(self, items: Items) -> None:
        # the loop has ended if it refuses
        with suppress(RuntimeError):
            assert self._loop is not None  # noqa: S101
            self._loop.call_soon_threadsafe(self._deliver, items)

    def _deliver(self, items: Items) -> None:
        for subscription in list(self._subscriptions):
            subscription.put(items)
