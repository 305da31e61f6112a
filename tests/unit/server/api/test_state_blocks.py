"""Blocks of states: a client that replaces them has what the ledger has."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latentfarm.server.api.state_blocks import BLOCK_JOBS, StatesSnapshot, changed_blocks, states_event

pytestmark = pytest.mark.unit

#: runs of equal states, as a batch has them
RUNS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3 * BLOCK_JOBS)), max_size=5)
START = 1_000_000


def states_of(runs: list[tuple[int, int]]) -> bytes:
    return b"".join(bytes([state]) * length for state, length in runs)


def apply(old: StatesSnapshot | None, data: str) -> StatesSnapshot:
    """Return what a client has after an event."""
    event = json.loads(data)
    states = bytearray((old.states if old else b"")[: event["total"] - event["start"]])
    states.extend(bytes(event["total"] - event["start"] - len(states)))
    for block in event["blocks"]:
        at = block["start"] - event["start"]
        found = gzip.decompress(b64decode(block["states"]))
        assert len(found) == block["length"]
        states[at : at + len(found)] = found
    return StatesSnapshot(event["start"], event["total"], bytes(states))


@given(old=RUNS, new=RUNS)
@example(old=[], new=[(0, 1)])
@example(old=[(2, BLOCK_JOBS)], new=[(2, BLOCK_JOBS - 1)])
@example(old=[(2, BLOCK_JOBS)], new=[(2, BLOCK_JOBS), (0, 1)])
@example(old=[(0, 3 * BLOCK_JOBS)], new=[(0, BLOCK_JOBS), (1, 1), (0, 2 * BLOCK_JOBS - 1)])
def test_the_blocks_turn_the_old_states_into_the_new_ones(
    old: list[tuple[int, int]], new: list[tuple[int, int]]
) -> None:
    before, after = states_of(old), states_of(new)
    snapshot = StatesSnapshot(START, START + len(before), before)
    expected = StatesSnapshot(START, START + len(after), after)
    data = states_event(snapshot, expected)
    found = apply(snapshot, data) if data else snapshot
    assert (found.total, found.states) == (expected.total, expected.states)
    # a new client has nothing
    found = apply(None, states_event(None, expected))
    assert (found.total, found.states) == (expected.total, expected.states)


@given(states=RUNS, changed=st.sets(st.integers(0, 15 * BLOCK_JOBS), max_size=4))
def test_only_blocks_with_a_change_are_sent(states: list[tuple[int, int]], changed: set[int]) -> None:
    old = states_of(states)
    new = bytearray(old)
    changed = {index for index in changed if index < len(old)}
    for index in changed:
        new[index] ^= 1
    runs = list(changed_blocks(old, bytes(new)))
    sent = {block for at, length in runs for block in range(at // BLOCK_JOBS, -(-(at + length) // BLOCK_JOBS))}
    assert sent == {index // BLOCK_JOBS for index in changed}
    # neighbours are one run
    assert all(at + length < following for (at, length), (following, _) in pairwise(runs))


def test_the_first_event_has_the_whole_window_and_equal_states_make_none() -> None:
    states = bytes(3 * BLOCK_JOBS + 1)
    snapshot = StatesSnapshot(0, 5 * BLOCK_JOBS, states)
    event = json.loads(states_event(None, snapshot))
    assert [(block["start"], block["length"]) for block in event["blocks"]] == [(0, len(states))]
    assert states_event(snapshot, StatesSnapshot(0, 5 * BLOCK_JOBS, states)) == ""
    # jobs beyond the window: only the total has changed
    assert json.loads(states_event(snapshot, StatesSnapshot(0, 9 * BLOCK_JOBS, states)))["blocks"] == []
    # a window after the last job
    assert json.loads(states_event(None, StatesSnapshot(7, 5, b""))) == {"start": 7, "total": 5, "blocks": []}
