"""Which workers a server watches for its clients."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.server.live.watched_workers import WatchedWorkers

pytestmark = pytest.mark.unit


@given(
    clients=st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=5),
    leaving=st.randoms(use_true_random=False),
)
def test_a_worker_is_watched_as_long_as_any_client_watches_it(clients: list[list[str]], leaving: Random) -> None:
    watched, stacks = WatchedWorkers(), []
    for workers in clients:
        stack = ExitStack()
        stack.enter_context(watched.watch(workers))
        stacks.append((workers, stack))
    leaving.shuffle(stacks)
    while stacks:
        assert watched.names() == frozenset(Counter(name for workers, _ in stacks for name in workers))
        stacks.pop()[1].close()
    assert watched.names() == frozenset()
