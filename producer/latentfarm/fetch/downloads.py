"""Many downloads at once, in order, with a bounded number in flight; files that are whole or absent."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Event
from typing import IO, TypeVar

from latentfarm.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


def in_order(
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
            while len(ahead) < 2 * threads and (some := list(islice(source, group))):
                ahead.append(pool.submit(run, some))
            if not ahead:
                return
            yield from ahead.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def whole_file(file: Path) -> Iterator[IO[bytes]]:
    """Give a file to write that takes the name ``file`` only when all is written, and leaves nothing otherwise.

    Raises:
        InputError: the disk or the folder does not take it.
    """
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as opened:
            yield opened
        fresh.replace(file)
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise cannot_write(file, error) from error
        raise


def write_whole(file: str, body: bytes) -> None:
    """Write a file so that it is whole or absent; ``file`` is text, for paths cost as much as the writing.

    Raises:
        InputError: the disk or the folder does not take it.
    """
    folder, _, name = file.rpartition(os.sep)
    fresh = f"{folder}{os.sep}.{name}.{os.getpid()}"
    try:
        with open(fresh, "wb") as opened:  # noqa: PTH123
            opened.write(body)
        os.replace(fresh, file)  # noqa: PTH105
    except OSError as error:
        Path(fresh).unlink(missing_ok=True)
        raise cannot_write(Path(file), error) from error


def make_folder(folder: Path) -> None:
    """Make a folder, if it is not there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(file: Path, error: OSError) -> InputError:
    """Return the error that says so."""
    return InputError(f"{file} cannot be written: {error.strerror}; mend that and run the same command again")
