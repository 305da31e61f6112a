"""The cache of the entries used last."""

from __future__ import annotations

import pytest

from latentfarm.recent_cache import RecentCache

pytestmark = pytest.mark.unit


def size(value: str) -> int:
    return 11 if value == "large" else 4


def test_what_is_kept_is_bounded() -> None:
    cache: RecentCache[int, str] = RecentCache(10, size=size)
    for key in range(5):
        cache.put(key, str(key))
    assert [cache.get(key) for key in range(5)] == [None, None, None, "3", "4"]
    cache.put(9, "large")
    assert cache.get(9) is None
    assert cache.get(4) == "4"


def test_the_least_recently_used_leaves() -> None:
    cache: RecentCache[int, str] = RecentCache(10, size=size)
    cache.put(0, "0")
    cache.put(1, "1")
    assert cache.get(0) == "0"
    cache.put(2, "2")
    assert [cache.get(key) for key in range(3)] == ["0", None, "2"]
