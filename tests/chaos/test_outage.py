"""A store that is down for longer than a lease: images wait for it, and nothing is rendered twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chaos.outage import JOBS, MOST_HELD, WORKERS, run

pytestmark = pytest.mark.acceptance

#: seconds for the engines to fill the queue
FILLING_S = 10


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [pytest.param(seconds, marks=pytest.mark.slow) for seconds in (40, 600)])
def test_while_the_store_is_down_images_wait_leasing_stops_and_nothing_is_rendered_again(
    tmp_path: Path, seconds: float
) -> None:
    found = run(tmp_path, seconds)
    assert found.refused > 0
    assert found.done_during <= WORKERS * MOST_HELD
    assert found.most_leased <= WORKERS * MOST_HELD
    assert found.last_lease_s < FILLING_S
    assert (found.done, found.failed, found.charged) == (JOBS, 0, 0)
    assert found.most_leases_of_a_job == 1
    assert found.commits == found.objects == JOBS
