"""The harness for a minute, with a seed that never changes; ``make chaos MINUTES=3`` is the longer run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chaos.farm_run import run_farm
from tests.chaos.faults import KINDS

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

SEED = 20


@pytest.mark.timeout(420)
def test_nothing_is_lost_and_nothing_is_committed_twice_whatever_dies(tmp_path: Path) -> None:
    outcome = run_farm(tmp_path / "farm", seed=SEED, duration_s=60, store="rclone")
    assert outcome.violations == [], f"seed {SEED}; what the run did lies in {tmp_path}"
    assert outcome.found.done + outcome.found.failed == outcome.found.jobs > 0
    assert len(set(outcome.happened.faults)) > len(KINDS) // 2
