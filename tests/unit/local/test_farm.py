from __future__ import annotations

from pathlib import Path

import pytest

from latentfarm.errors import UnavailableError
from latentfarm.local.farm import LocalFarm, worker_command
from latentfarm.settings import Settings

pytestmark = pytest.mark.unit


def test_a_farm_whose_server_does_not_start_reports_why_and_can_be_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UnavailableError("Redis does not answer")

    monkeypatch.setattr("latentfarm.local.farm.start_redis", fail)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="Redis does not answer"):
            LocalFarm(tmp_path)


def test_a_supervisor_has_the_limits_and_the_devices_of_the_settings() -> None:
    settings = Settings(shutdown_timeout_s=50, stall_timeout_s=60)
    limits = ["--shutdown-timeout-s=50.0", "--stall-timeout-s=60.0"]
    assert worker_command(settings)[2:] == ["latentfarm_worker.supervise.supervisor", *limits]
    assert worker_command(settings, devices="cpu:2")[-1] == "--devices=cpu:2"
