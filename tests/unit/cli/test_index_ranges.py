"""Indices of jobs on the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.cli.index_ranges import parse_indices
from latentfarm.errors import InputError

pytestmark = pytest.mark.unit


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20)), min_size=1, max_size=8))
def test_indices_and_ranges_are_joined_and_sorted(ranges: list[tuple[int, int]]) -> None:
    text = ", ".join(f"{first}-{first + more}" if more else str(first) for first, more in ranges)
    expected = {index for first, more in ranges for index in range(first, first + more + 1)}
    assert parse_indices("--set", text, most=10_000) == sorted(expected)


@pytest.mark.parametrize("text", ["", "3,", "-3", "3-", "9-3", "a", "3..5", "٣", "1e3", "3 4"])
def test_other_texts_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"^--set '.*': write indices and rising ranges, such as 3,17-40$"):
        parse_indices("--set", text, most=10)


@pytest.mark.parametrize("text", ["0-999999999999999", "0-9,10", "1,3,5,7,9,11,13,15,17,19,21"])
def test_a_range_is_not_larger_than_what_is_accepted(text: str) -> None:
    with pytest.raises(InputError, match="10"):
        parse_indices("--set", text, most=10)
