"""Deletions whose server ends: another server, or the next one, continues them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.support.s3_front import Faults, front

from latentfarm.farm import Farm
from latentfarm.local.http_server import LocalServer
from latentfarm.server.openai import sweep
from latentfarm.storage.keys import batch_prefix, image_key

pytestmark = pytest.mark.integration

#: objects that one request deletes
PAGE = 1_000


def submit(farm: Farm, name: str, objects: int = 1) -> None:
    farm.submit(["a cat"], batch=name, model="unserved")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda epoch: farm.bucket.put(image_key(name, 0, epoch), b"image"), range(objects)))


def freeze_at(request: int) -> Faults:
    """Return faults that freeze one of the requests that delete."""
    deletions = count()
    return Faults(kind="freeze", picks=lambda method, _path: method == "POST" and next(deletions) == request)


def test_a_deletion_whose_server_is_killed_is_continued_by_another_one(
    farm: Farm, serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(farm, "cats", PAGE)
    faults = freeze_at(1)
    with front(farm.settings, faults=faults) as slow:
        killed = LocalServer(slow, "127.0.0.1:0", log=tmp_path / "server.log")
        assert httpx2.delete(f"{killed.wait_for_url()}/api/batches/cats").status_code == 202
        until(lambda: faults.met["freeze"] == 1, timeout_s=30)
        killed.process.wait_or_kill(0)
    assert 0 < len(list(farm.bucket.keys(batch_prefix("cats")))) < PAGE
    assert farm.batch("cats").status().state == "deleting"

    monkeypatch.setattr(sweep, "_DELETIONS_S", 0.05)
    server = serving()
    # five minutes pass
    client: Any = farm.ledger.redis
    client.zadd("{lf}:deletions", {"cats": 1}, xx=True)
    until(lambda: server.client.get("/api/batches/cats").status_code == 404, timeout_s=30)
    assert list(farm.bucket.keys(batch_prefix("cats"))) == []


def test_a_server_that_ends_hands_its_deletion_over_at_once(farm: Farm, serving: Serving) -> None:
    submit(farm, "dogs")
    faults = freeze_at(0)
    with front(farm.settings, faults=faults) as slow:
        ending = serving(Farm.open(slow))
        assert ending.client.delete("/api/batches/dogs").status_code == 202
        until(lambda: faults.met["freeze"] == 1, timeout_s=30)
        assert farm.ledger.claim_deletion() is None
        stopping = Thread(target=ending.stop)
        stopping.start()
        until(ending.app.state.context.stopping.is_set, timeout_s=10)
        faults.thawed.set()
        until(lambda: farm.ledger.claim_deletion() == "dogs", timeout_s=30)
        stopping.join(30)
    assert farm.batch("dogs").status().state == "deleting"
