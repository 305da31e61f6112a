"""Every kind of fault, on a seed that never changes. `make chaos` adds the stock control."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.chaos.farm_run import run_farm
from tests.chaos.faults import KINDS

pytestmark = pytest.mark.acceptance

SEED = 21


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [105, pytest.param(210, marks=pytest.mark.slow)])
def test_under_faults_no_job_is_lost_none_is_committed_twice_and_none_fails_for_anothers_fault(
    tmp_path: Path, seconds: float
) -> None:
    outcome = run_farm(tmp_path / "farm", seed=SEED, duration_s=seconds, store="rclone")
    assert outcome.violations == [], f"seed {SEED}; the logs of the run are in {tmp_path}"
    found = outcome.found
    assert found.done + found.failed + found.discarded == found.jobs > 0
    assert set(outcome.faults_seen.faults) == set(KINDS)
    # all that is new to a farm that has drafts has happened
    assert found.discarded
    assert {"finish", "discard"} <= outcome.curated.keys()
    assert any(found.put_down.values())
    kinds = Counter(entry.what for entry in outcome.entries)
    assert kinds["draft"] > found.discarded
    # a worker parks an image only if the rest takes longer than a checkpoint, which a slow machine decides otherwise
    assert kinds["park"] or seconds < 210
