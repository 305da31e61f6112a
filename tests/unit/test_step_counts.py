"""After how many evaluations a job stops as a draft."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.step_counts import draft_evaluations


@pytest.mark.parametrize(
    ("draft", "steps", "evaluations", "expected"),
    [
        (0.3, 25, 25, 8),
        (8, 25, 25, 8),
        (8, 25, 50, 16),  # a scheduler of second order
        (0.01, 25, 25, 1),
        (0.99, 10, 10, 9),
        (40, 25, 25, 24),
        (1, 25, 25, 1),
        (0, 25, 25, None),
        (0.5, 1, 1, None),
    ],
)
def test_a_draft_stops_after_a_share_of_the_steps_or_a_number_of_them(
    draft: float, steps: int, evaluations: int, expected: int | None
) -> None:
    assert draft_evaluations(draft, steps, evaluations) == expected


@given(st.floats(0.001, 500), st.integers(1, 500), st.integers(2, 1000))
def test_a_draft_always_stops_between_two_evaluations(draft: float, steps: int, evaluations: int) -> None:
    found = draft_evaluations(draft, steps, evaluations)
    assert found is not None
    assert 1 <= found < evaluations
