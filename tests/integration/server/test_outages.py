"""Redis and the bucket are unavailable, and then well again."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.support.http_server import RunningServer
from tests.support.leasing import opened
from tests.support.machines import free_ports
from tests.support.redis_process import running_redis
from tests.support.s3_front import front, s3_error

from latentfarm.farm import Farm
from latentfarm.server.live import hub
from latentfarm.settings import Settings

pytestmark = pytest.mark.integration


def readiness(server: RunningServer) -> tuple[int, str]:
    answer = server.client.get("/readyz")
    return answer.status_code, answer.text.strip()


def check_outage(answer: httpx2.Response, what: str) -> None:
    assert (answer.status_code, answer.headers["retry-after"], answer.headers["x-should-retry"]) == (503, "5", "true")
    assert answer.json()["error"]["code"] == "unavailable"
    # no host, port or name
    assert answer.json()["error"]["message"] == f"the farm's {what} is unavailable; try again later"


def test_a_server_starts_without_redis_and_bucket_and_is_well_again_after_each_outage(
    serving: Serving, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_LONGEST_PAUSE_S", 0.2)
    [port] = free_ports(1)
    # what is answered 503 is tried again for seconds
    refusals = dict.fromkeys(("GET", "HEAD", "PUT", "POST"), s3_error("AccessDenied"))
    with front(settings, refusals) as behind:
        farm = Farm.open(behind.model_copy(update={"redis_url": f"redis://127.0.0.1:{port}/0"}))
        server = serving(farm)
        assert server.client.get("/livez").status_code == 200
        assert readiness(server) == (503, "unavailable: Redis, the bucket")
        check_outage(server.client.get("/v1/files"), "ledger")
        for life in ("first", "second"):
            with running_redis(tmp_path / life, port=port):
                if refusals:
                    until(lambda: readiness(server) == (503, "unavailable: the bucket"), timeout_s=20)
                    check_outage(server.client.get("/v1/files"), "store")
                    refusals.clear()
                until(lambda: readiness(server) == (200, "ok"), timeout_s=20)
                assert server.client.get("/v1/files").status_code == 200
                # what follows the events connects again by itself
                opened(farm.ledger, life)
                event = farm.ledger.last_event_id()
                until(lambda event=event: server.app.state.context.hub.latest_id == event, timeout_s=20)  # type: ignore[misc]
            until(lambda: readiness(server) == (503, "unavailable: Redis"), timeout_s=20)
