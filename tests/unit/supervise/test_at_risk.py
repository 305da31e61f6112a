"""The record of the jobs at risk survives a kill at any instruction of a write."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm_worker.supervise.at_risk import RECORD_BYTES, AtRisk, AtRiskRecord
from latentfarm_worker.supervise.shared_state import SharedState

pytestmark = pytest.mark.unit

JOBS = st.tuples(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}/[0-9]{1,9}", fullmatch=True), st.integers(1, 2**53))
VALUES = st.none() | st.builds(AtRisk, st.lists(JOBS, max_size=70).map(tuple), lone=st.booleans())


def record(size: int = RECORD_BYTES) -> tuple[bytearray, AtRiskRecord]:
    memory = bytearray(size)
    return memory, AtRiskRecord(memoryview(memory))


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_the_next_process_reads_the_value_written_last_and_writes_on(values: list[AtRisk | None]) -> None:
    memory, _ = record()
    for value in values:
        # a process that begins knows nothing of the writes before it
        AtRiskRecord(memoryview(memory)).write(value)
        assert AtRiskRecord(memoryview(memory)).read() == value


@given(older=VALUES, newer=VALUES, history=st.lists(VALUES, max_size=2), data=st.data())
def test_a_torn_write_is_read_as_the_older_or_the_newer_value(
    older: AtRisk | None, newer: AtRisk | None, history: list[AtRisk | None], data: st.DataObject
) -> None:
    memory, writer = record()
    for value in [*history, older]:
        writer.write(value)
    before = bytes(memory)
    writer.write(newer)
    after = bytes(memory)
    changed = [at for at in range(len(before)) if before[at] != after[at]]
    # the kernel promises no order of the stores, so any part of the new bytes may be there
    cut = data.draw(st.integers(0, len(changed)))
    torn = [changed[:cut], changed[cut:], data.draw(st.lists(st.sampled_from(changed))) if changed else []]
    for new in torn:
        mixed = bytearray(before)
        for at in new:
            mixed[at] = after[at]
        assert AtRiskRecord(memoryview(mixed)).read() in (older, newer)


def test_of_more_jobs_than_fit_none_is_cleared() -> None:
    memory, writer = record(512)
    writer.write(AtRisk((("b/1", 1),)))
    writer.write(AtRisk(tuple((f"b/{index}", 1) for index in range(100))))
    assert AtRiskRecord(memoryview(memory)).read() is None


def test_a_thousand_jobs_of_the_longest_names_fit() -> None:
    memory, writer = record()
    most = AtRisk(tuple((f"{'b' * 64}/{99_999_999 - index}", 2**40) for index in range(1_000)))
    writer.write(most)
    assert AtRiskRecord(memoryview(memory)).read() == most


def test_a_lone_job_is_the_suspect_and_one_of_several_is_not() -> None:
    assert AtRisk((("b/17", 3),), lone=True).suspect == "b/17"
    assert AtRisk((("b/17", 3),)).suspect is None
    assert AtRisk((), lone=True).suspect is None


def test_the_state_of_a_killed_child_names_its_jobs() -> None:
    mine = SharedState.shared()
    assert mine.at_risk() is None
    theirs = SharedState(os.dup(mine.descriptor))
    theirs.record_at_risk([("b/1", 4), ("b/2", 1)], lone=False)
    assert mine.at_risk() == AtRisk((("b/1", 4), ("b/2", 1)))
    theirs.record_at_risk([("b/2", 1)], lone=True)
    theirs.stop()
    assert (mine.at_risk(), mine.stopping) == (AtRisk((("b/2", 1),), lone=True), True)
    mine.begin()
    assert not theirs.stopping
    theirs.record_at_risk([], lone=False)
    assert mine.at_risk() is None, "a call without jobs clears none"
