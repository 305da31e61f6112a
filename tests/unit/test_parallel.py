from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from threading import Event

import pytest

from latentfarm.parallel import ordered_parallel_map

pytestmark = pytest.mark.unit


def test_results_are_in_the_order_of_the_items_however_long_each_takes() -> None:
    second_done = Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_done.wait(10)
        elif item == 1:
            second_done.set()
        return item * item

    with closing(ordered_parallel_map(range(50), work, threads=4, group=1)) as results:
        assert list(results) == [(item, item * item) for item in range(50)]


def test_a_slow_source_delays_no_finished_result() -> None:
    read: list[int] = []
    done = [Event() for _ in range(20)]

    def items() -> Iterator[int]:
        for item in range(20):
            if item >= 2:
                # like a source that waits: the results before this item are finished
                assert done[item - 1].wait(10)
            read.append(item)
            yield item

    def work(item: int) -> int:
        done[item].set()
        return item

    with closing(ordered_parallel_map(items(), work, threads=4, group=1)) as results:
        ahead = [len(read) - item for item, _ in results]
    # without a check for finished results, all 2 x 4 places are filled before the first one
    assert min(ahead) < 8


def test_an_error_of_the_source_or_the_work_is_raised() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("broken source")

    with pytest.raises(OSError, match="broken source"):
        list(ordered_parallel_map(broken(), str, threads=2, group=1))
    with pytest.raises(ValueError, match="invalid literal"):
        list(ordered_parallel_map(["1", "x"], int, threads=2, group=1))
