"""Messages of slots: written and read again, and any other message is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.ledger import Slot, SlotsReport
from latentfarm.ledger.slot_reports import parse_slots, slots_message

pytestmark = pytest.mark.unit

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SLOTS = st.builds(Slot, job=NAMES, step=st.integers(0, 500), steps=st.integers(0, 500), preview=NAMES)


@given(st.builds(SlotsReport, worker=NAMES, slots=st.lists(SLOTS, max_size=4).map(tuple)))
def test_a_report_is_read_as_it_was_written(report: SlotsReport) -> None:
    assert parse_slots(*slots_message(report)) == report


@given(
    st.binary() | st.sampled_from([b"null", b"{}", b"[1]", b'[{"job": "a", "step": 1}]', b'[{"job": 1, "step": "x"}]'])
)
def test_another_message_is_no_report(content: bytes) -> None:
    assert parse_slots("{lf}:slots:w", content) is None
