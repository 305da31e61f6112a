"""Run many calls on threads and yield their results in order, with a bounded number in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from threading import Event
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_parallel_map(
    items: Iterable[T], work: Callable[[T], R], *, threads: int, group: int
) -> Generator[tuple[T, R], None, None]:
    """Yield each item with what ``work`` made of it on some thread, in the items' order.

    A task takes ``group`` items, for handing one over costs a tenth of a download; 2 tasks a thread are ahead of the
    consumer, so at most 2 x ``threads`` x ``group`` items are held. When the consumer stops or anything raises, items
    that are being worked on are finished and no more begun.
    """
    stopped = Event()

    def run(some: list[T]) -> list[tuple[T, R]]:
        return [(item, work(item)) for item in some if not stopped.is_set()]

    source = iter(items)
    ahead: deque[Future[list[tuple[T, R]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    try:
        while True:
            # a finished result is not kept back while a slow source is read
            while (
                len(ahead) < 2 * threads and not (ahead and ahead[0].done()) and (some := list(islice(source, group)))
            ):
                ahead.append(pool.submit(run, some))
            if not ahead:
                return
            yield from ahead.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
