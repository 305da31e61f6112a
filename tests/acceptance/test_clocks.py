"""Workers whose clocks are hours off."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests.conftest import until

from latentfarm import Farm
from latentfarm.local.process import ManagedProcess

pytestmark = pytest.mark.acceptance

#: runs in a worker before anything else does
SKEWED = """
import os, time
skew_s = float(os.environ["SKEW_S"])
true_time, true_time_ns, true_gmtime, true_localtime = time.time, time.time_ns, time.gmtime, time.localtime
time.time = lambda: true_time() + skew_s
time.time_ns = lambda: true_time_ns() + int(skew_s * 1e9)
time.gmtime = lambda seconds=None: true_gmtime(time.time() if seconds is None else seconds)
time.localtime = lambda seconds=None: true_localtime(time.time() if seconds is None else seconds)
"""


def test_workers_two_hours_off_either_way_render_as_any_other(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SKEWED)
    rows = [{"prompt": f"p{n}", "num_inference_steps": 4, "width": 64, "height": 64} for n in range(60)]
    batch = farm.submit(rows, batch="b")
    workers = [
        ManagedProcess(
            f"worker {skew_s}",
            [sys.executable, "-m", "latentfarm", "worker", "--slots", "2"],
            log=tmp_path / f"worker{skew_s}.log",
            env={
                **farm.settings.environment(),
                "SKEW_S": str(skew_s),
                "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
                "LATENTFARM_LEASE_TTL_S": "4",
                "LATENTFARM_HOUSEKEEPING_INTERVAL_S": "0.5",
            },
        )
        for skew_s in (-7200, 7200)
    ]
    try:
        until(lambda: len(farm.ledger.workers("mini")) == 2)
        assert batch.wait(timeout_s=120).done == 60
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait_or_kill(30)
    lines = list(batch.results())
    # no lease expired early, and both workers rendered
    assert {line["attempts"] for line in lines} == {1}
    assert len({line["worker"] for line in lines}) == 2
