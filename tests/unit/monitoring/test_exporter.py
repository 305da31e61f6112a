"""Which batches are told of, however many there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.ledger import BatchSummary
from latentfarm.monitoring.exporter import MAX_BATCHES, chosen

pytestmark = pytest.mark.unit

STATES = ("opening", "open", "complete", "cancelled", "deleting")


@given(st.lists(st.sampled_from(STATES), max_size=3 * MAX_BATCHES))
def test_batches_under_way_come_first_then_the_latest_and_never_more_than_the_bound(states: list[str]) -> None:
    heads = [BatchSummary(f"b{n}", "mini", state, 0) for n, state in enumerate(states)]
    told = chosen(heads)
    assert len(told) == min(len(heads), MAX_BATCHES)
    assert len({head.name for head in told}) == len(told)
    under_way = [head for head in heads if not head.ended]
    assert set(under_way[-MAX_BATCHES:]) <= set(told)
    ended = [head for head in told if head.ended]
    assert ended == [head for head in reversed(heads) if head.ended][: len(ended)]
