"""Amounts and indices of drafts on the command line."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.cli.amounts import parse_amount
from latentfarm.cli.draft_selection import format_indices
from latentfarm.cli.index_ranges import parse_indices
from latentfarm.errors import InputError

pytestmark = pytest.mark.unit


@given(st.sets(st.integers(0, 60), min_size=1).map(sorted))
def test_printed_indices_are_read_as_the_same_ones(indices: list[int]) -> None:
    text = format_indices(indices)
    assert parse_indices("--indices", text, most=1_000) == indices
    # no two runs touch
    ends = [[int(end) for end in run.split("-")] for run in text.split(",")]
    assert all(before[-1] + 1 < after[0] for before, after in pairwise(ends))


@pytest.mark.parametrize(
    ("text", "amount"), [("20", 20), ("1", 1), ("0.1", 0.1), (".5", 0.5), ("10%", 0.1), (" 0.5 % ", 0.005), ("3.0", 3)]
)
def test_an_amount_is_a_share_or_a_number(text: str, amount: float) -> None:
    assert parse_amount("--top", text) == pytest.approx(amount)


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "0%", "100%", "150%", "1.5", "nan", "1e3", "%", "9" * 30, "٣"])
def test_any_other_amount_is_refused_with_the_cure(text: str) -> None:
    with pytest.raises(InputError, match=r"--top .*: write a share such as 0\.1 or 10%, or a number such as 20"):
        parse_amount("--top", text)


def test_an_amount_may_be_nothing() -> None:
    assert [parse_amount("--keep", text, zero=True) for text in ("0", "0%", "0.0")] == [0, 0, 0]
