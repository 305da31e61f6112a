"""A real worker whose Redis is found by a Sentinel: it renders on when the primary is killed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests.conftest import until
from tests.support.sentinel_redis import sentinel_redis

from latentfarm import Farm
from latentfarm.errors import UnavailableError
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

SMALL = {"prompt": "p", "width": 64, "height": 64, "scheduler": "euler", "num_inference_steps": 20}
JOBS = 20


def test_a_batch_and_an_idle_worker_outlast_a_failover(settings: Settings, tmp_path: Path) -> None:
    with sentinel_redis(tmp_path / "redis") as servers:
        settings = settings.model_copy(update={"redis_url": servers.url})
        environment = {**os.environ, **settings.environment(), "LATENTFARM_LEASE_TTL_S": "3", "OMP_NUM_THREADS": "1"}
        environment |= {"LATENTFARM_LOG_FORMAT": "text", "LATENTFARM_HOUSEKEEPING_INTERVAL_S": "0.5"}
        log = tmp_path / "worker.log"
        worker = ManagedProcess("worker", [sys.executable, "-m", "latentfarm", "worker"], log=log, env=environment)
        try:
            farm = Farm.open(settings)
            batch = farm.submit([SMALL] * JOBS, batch="cats")
            until(lambda: 0 < batch.status().done < JOBS)
            servers.kill_primary()
            until(lambda: done(farm, "cats") == JOBS)
            # its connection for doorbells is one to the other server by now
            farm.submit([SMALL], batch="dogs")
            until(lambda: done(farm, "dogs") == 1)
            assert "Traceback" not in log.read_text()
        finally:
            worker.terminate()
            worker.wait_or_kill(20)


def done(farm: Farm, name: str) -> int:
    """Return the number of images; during a failover, zero."""
    try:
        return farm.batch(name).status().done
    except UnavailableError:
        return 0
