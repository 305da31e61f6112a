"""What ``verify`` prints about images that were compared under other conditions than their receipts'."""

from __future__ import annotations

import pytest

from latentfarm.cli.verify import _Tally
from latentfarm_worker.tools.comparison import ComparisonResult

pytestmark = pytest.mark.unit


def test_conditions_that_differ_are_counted_and_named() -> None:
    tally, torch = _Tally(), "torch: 2.12.0 in the receipt, 2.13.0 here"
    for index, others in enumerate([(), (torch,), (torch,), ("dtype: float16 in the receipt, float32 here", torch)]):
        tolerance, largest = (2, 1) if others else (0, 0)
        tally.add(ComparisonResult(f"b/{index}", (), tolerance, others, not others, largest))
    assert tally.text().splitlines() == [
        "1 of 4 images: equal bytes",
        "3 of 4 images: within 2/255, the largest difference is 1/255",
        f"other conditions for 2 of them: {torch}",
        f"other conditions for 1 of them: dtype: float16 in the receipt, float32 here; {torch}",
    ]
    assert sum(tally.as_dict()["other_conditions"].values()) == 3
