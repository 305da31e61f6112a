"""A parallel map that keeps the order and bounds the items in flight."""

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
    """Yield each item with the result of ``work``, in the items' order. ``work`` runs on ``threads`` threads.

    A task takes ``group`` items, because passing a task to a thread costs a tenth of a download. Two tasks per thread
    are started ahead of the consumer: at most 2 x ``threads`` x ``group`` items are held. If the consumer stops or an
    exception is raised, running items are finished and no further ones started.
    """
    stopped = Event()

    def run(task: list[T]) -> list[tuple[T, R]]:
        return [(item, work(item)) for item in task if not stopped.is_set()]

    source = iter(items)
    ahead: deque[Future[list[tuple[T, R]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="parallel")
    try:
        while True:
            # a finished result is not kept back while a slow source is read
            while (
                len(ahead) < 2 * threads and not (ahead and ahead[0].done()) and (task := list(islice(source, group)))
            ):
                ahead.append(pool.submit(run, task))
            if not ahead:
                return
            yield from ahead.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
