"""The page over a batch of 10^6 jobs."""

from __future__ import annotations

import pytest
from tests.support.http_server import RunningServer
from tests.support.large_batch import JOBS, WHOLE, error_of, make_large_batch, prompt_of

from latentfarm import Farm
from latentfarm.limits import PART_JOBS

pytestmark = pytest.mark.integration


def test_the_batch_of_these_tests_is_one_to_the_server_too(farm: Farm, server: RunningServer) -> None:
    status = make_large_batch(farm, images=2).status()
    assert (status.total, status.pending, status.leased) == (JOBS, 300_000, 0)
    assert status.done + status.failed == 700_000
    for part in WHOLE:
        start = part * PART_JOBS
        jobs = server.client.get(f"/api/batches/million/jobs?start={start}&limit=2").json()["jobs"]
        assert [job["request"]["prompt"] for job in jobs] == [prompt_of(start), prompt_of(start + 1)]
        for job in jobs:
            if job["thumbnail"]:
                assert server.client.get(job["thumbnail"]).headers["content-type"] == "image/webp"
    failed = server.client.get("/api/batches/million/jobs?state=failed&limit=100").json()["jobs"]
    assert len(failed) == status.failed
    assert [job["error"] for job in failed] == [error_of(job["index"]) for job in failed]
