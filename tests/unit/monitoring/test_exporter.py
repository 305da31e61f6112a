from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.batch_state import BatchState
from latentfarm.ledger import BatchSummary
from latentfarm.monitoring.exporter import MAX_BATCHES, select_batches

pytestmark = pytest.mark.unit

STATES = [state for state in BatchState if state is not BatchState.PAUSED]


@given(st.lists(st.sampled_from(STATES), max_size=3 * MAX_BATCHES))
def test_batches_that_have_not_ended_come_first_then_the_latest_up_to_the_limit(states: list[BatchState]) -> None:
    summaries = [BatchSummary(f"b{n}", "mini", state, 0) for n, state in enumerate(states)]
    selected = select_batches(summaries)
    assert len(selected) == min(len(summaries), MAX_BATCHES)
    assert len({summary.name for summary in selected}) == len(selected)
    running = [summary for summary in summaries if not summary.ended]
    assert set(running[-MAX_BATCHES:]) <= set(selected)
    ended = [summary for summary in selected if summary.ended]
    assert ended == [summary for summary in reversed(summaries) if summary.ended][: len(ended)]
