"""What a client of the hub receives, in order, and when it is dropped."""

from __future__ import annotations

import asyncio

import pytest

from latentfarm.ledger import Slot, SlotsReport
from latentfarm.ledger.events import Event
from latentfarm.server.live import hub
from latentfarm.server.live.hub import SlowSubscriberError, Subscription

pytestmark = pytest.mark.unit


def events(count: int) -> list[Event]:
    return [Event(f"{number}-0", "open", batch=f"b{number % 2}") for number in range(count)]


def test_a_client_receives_what_it_wants_until_the_end() -> None:
    async def run() -> list[str]:
        subscription = Subscription(lambda item: getattr(item, "batch", "") == "b1")
        reading = asyncio.create_task(_ids(subscription))
        await asyncio.sleep(0)
        subscription.put(events(4))
        subscription.put([])
        await asyncio.sleep(0)
        subscription.put(events(2))
        subscription.close()
        subscription.put(events(9))
        return await reading

    assert asyncio.run(run()) == ["1-0", "3-0", "1-0"]


def test_a_client_that_falls_behind_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_MAX_WAITING", 10)

    async def run() -> None:
        subscription = Subscription(lambda _: True)
        subscription.put(events(10))
        assert (await anext(subscription)).id == "0-0"  # type: ignore[union-attr]
        subscription.put(events(2))
        with pytest.raises(SlowSubscriberError):
            await anext(subscription)

    asyncio.run(run())


def test_of_the_slots_of_a_worker_only_the_newest_wait_for_a_slow_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_MAX_WAITING", 10)

    def report(worker: str, step: int) -> SlotsReport:
        return SlotsReport(worker, (Slot("cats/1", step, 500),))

    async def run() -> None:
        subscription = Subscription(lambda _: True)
        subscription.put(events(1))
        for step in range(100):
            subscription.put([report("w1", step)])
            subscription.put([report("w2", step)])
        subscription.put(events(1))
        subscription.close()
        first, *slots, last = [item async for item in subscription]
        assert first == last == events(1)[0]
        assert slots == [report("w1", 99), report("w2", 99)]

    asyncio.run(run())


async def _ids(subscription: Subscription) -> list[str]:
    return [item.id async for item in subscription if isinstance(item, Event)]
