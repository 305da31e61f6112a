"""An answer that many clients poll is made once for all of them."""

from __future__ import annotations

import asyncio

import pytest

from latentfarm.server.live.cache import Cached

pytestmark = pytest.mark.unit


class Calls:
    """Counts its calls, and fails on demand."""

    def __init__(self) -> None:
        self.count = 0
        self.fails = False
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self) -> int:
        self.count += 1
        count = self.count
        await self.may_end.wait()
        if self.fails:
            raise KeyError("no")
        return count


def test_clients_share_one_call_and_one_that_hangs_up_does_not_cancel_it() -> None:
    async def run() -> None:
        cached, calls = Cached[int](60), Calls()
        calls.may_end.clear()
        first, *others = [asyncio.create_task(cached.get("a", calls)) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        calls.may_end.set()
        assert await asyncio.gather(*others) == [1] * 4
        assert await cached.get("a", calls) == 1
        assert await cached.get("b", calls) == 2

    asyncio.run(run())


def test_an_old_value_and_an_error_are_made_again() -> None:
    async def run() -> None:
        cached, calls = Cached[int](0), Calls()
        assert [await cached.get("a", calls) for _ in range(2)] == [1, 2]
        calls.fails = True
        kept = Cached[int](60)
        for _ in range(2):
            with pytest.raises(KeyError):
                await kept.get("a", calls)
        calls.fails = False
        assert await kept.get("a", calls) == 5

    asyncio.run(run())


def test_the_number_of_values_is_bounded() -> None:
    async def run() -> None:
        cached, calls = Cached[int](60, max_keys=10), Calls()
        for key in range(100):
            await cached.get(key, calls)
        assert len(cached._values) <= 10

    asyncio.run(run())
