"""Reads of jobs of several parts: the parts are read at the same time, because a store takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby
from typing import TypeVar

from latentfarm.parallel import ordered_parallel_map
from latentfarm.storage.keys import part_of

Found = TypeVar("Found")

_THREADS = 16


def read_by_part(indices: Iterable[int], read: Callable[[list[int]], Iterable[Found]]) -> Iterator[Found]:
    """Yield what ``read`` returns for the indices of each part, in order; for several parts it is called on threads.

    Args:
        indices: of jobs, rising. All are held.
        read: is called with those of one part.
    """
    groups = [list(group) for _, group in groupby(indices, key=part_of)]
    if len(groups) < 2:
        yield from read(groups[0]) if groups else ()
        return
    found = ordered_parallel_map(groups, lambda group: list(read(group)), threads=_THREADS, group=1)
    yield from chain.from_iterable(each for _, each in found)
