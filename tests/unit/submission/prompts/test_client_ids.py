from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.submission.prompts import ClientIds

pytestmark = pytest.mark.unit


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=300))
def test_client_ids_agree_with_a_set(names: list[str]) -> None:
    ids = ClientIds()
    seen: set[str] = set()
    for name in names:
        assert ids.add(name) == (name not in seen)
        seen.add(name)


def test_no_id_is_lost_or_made_up_while_the_tables_grow() -> None:
    ids = ClientIds()
    for number in range(60_000):
        assert ids.add(f"row {number}")
    assert not any(ids.add(f"row {number}") for number in range(60_000))
    assert ids.add("row 60000")


def test_an_id_costs_at_most_sixteen_bytes_however_long_it_is() -> None:
    tracemalloc.start()
    try:
        ids = ClientIds()
        worst = 0.0
        for number in range(1, 100_001):
            ids.add(f"{number:0200}")
            if number > 50_000 and number % 1000 == 0:
                worst = max(worst, tracemalloc.get_traced_memory()[0] / number)
    finally:
        tracemalloc.stop()
    assert worst <= 16
