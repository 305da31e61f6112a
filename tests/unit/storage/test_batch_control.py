"""``control.json``: the user's decisions about a batch, in every form that was ever written."""

from __future__ import annotations

import pytest

from latentfarm.batch_state import PausedBy, describe_pause
from latentfarm.storage.batch_control import BatchControl


@pytest.mark.parametrize(
    ("stored", "paused_by", "reason"),
    [
        ('{"paused": "", "cancelled": false, "priority": 3}', PausedBy.NOT_PAUSED, ""),
        ('{"paused": "by its user: lunch"}', PausedBy.USER, "by its user: lunch"),
        ('{"paused": "lunch", "paused_by": "user"}', PausedBy.USER, "lunch"),
        ('{"paused": "", "paused_by": "user"}', PausedBy.USER, ""),
    ],
)
def test_a_pause_of_an_older_version_counts_as_the_users(stored: str, paused_by: PausedBy, reason: str) -> None:
    control = BatchControl.model_validate_json(stored)
    assert (control.paused_by, control.paused) == (paused_by, reason)


def test_a_control_file_is_read_as_it_was_written() -> None:
    control = BatchControl(paused="50 failed", paused_by=PausedBy.FAILURE_BUDGET, priority=2)
    assert BatchControl.model_validate_json(control.model_dump_json()) == control


def test_a_pause_is_described_in_one_line() -> None:
    assert describe_pause(PausedBy.NOT_PAUSED, "") == ""
    assert describe_pause(PausedBy.USER, "") == "by its user"
    assert describe_pause(PausedBy.FAILURE_BUDGET, "50 failed") == "failure budget: 50 failed"
