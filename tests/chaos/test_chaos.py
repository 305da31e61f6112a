"""Three minutes of faults on a seed that never changes; ``make chaos`` is the longer run, with the control."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chaos.farm_run import run_farm
from tests.chaos.faults import KINDS

pytestmark = pytest.mark.acceptance

SEED, DURATION_S = 20, 60


@pytest.mark.timeout(600)
def test_nothing_is_lost_and_nothing_is_committed_twice_whatever_dies(tmp_path: Path) -> None:
    outcome = run_farm(tmp_path / "farm", seed=SEED, duration_s=DURATION_S, store="rclone")
    assert outcome.violations == [], f"seed {SEED}; what the run did lies in {tmp_path}"
    assert outcome.found.done + outcome.found.failed == outcome.found.jobs > 0
    assert set(outcome.faults_seen.faults) == set(KINDS)
