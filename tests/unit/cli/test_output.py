from __future__ import annotations

import pytest

from latentfarm.cli.output import format_duration

pytestmark = pytest.mark.unit


def test_durations_have_two_units_at_most() -> None:
    assert [format_duration(s) for s in (0.4, 59, 61, 3600, 7325)] == [
        "0 s",
        "59 s",
        "1 min 1 s",
        "1 h 0 min",
        "2 h 2 min",
    ]
