"""Interactive jobs on a real worker under its supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import until

from latentfarm import Farm
from latentfarm.batch_kind import BatchKind
from latentfarm.ledger import INTERACTIVE_PRIORITY
from latentfarm.settings import Settings
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.acceptance

SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 60, "scheduler": "euler"}


def test_a_worker_needs_no_doorbell_and_a_drain_ends_it_for_good_after_the_image_it_has_begun(
    settings: Settings, farm: Farm, tmp_path: Path
) -> None:
    silent = Farm(replace(farm.connection, ring=lambda _model: 0))
    options = SubmitOptions(kind=BatchKind.INTERACTIVE, priority=INTERACTIVE_PRIORITY, keep_s=3600)
    own = {"LATENTFARM_HOUSEKEEPING_INTERVAL_S": "0.2", "LATENTFARM_SLOTS": "1", "LATENTFARM_MICRO_BATCH": "2"}
    command = [sys.executable, "-m", "latentfarm_worker.supervise.supervisor"]
    with (tmp_path / "log").open("w+b") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stderr=log, env={**os.environ, **settings.environment(), **own}
        )
        try:
            until(lambda: bool(farm.workers()))
            [worker] = farm.workers()
            with farm.ledger.live_reports() as reports:
                reports.wait(0.01)
                batch = silent.submit(["a red circle"], batch="interactive-1", options=options, **SMALL)
                until(lambda: any(report.step for report in reports.wait(1)))
            assert farm.ledger.request_drain(worker.name)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    text = (tmp_path / "log").read_text()
    assert batch.status().done == 1, text
    assert "a drain is requested" in text
    assert farm.workers() == []
