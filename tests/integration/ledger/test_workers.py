"""Workers in the ledger: their heartbeats, rates and throughput."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.leasing import lease, opened

from latentfarm.ledger import Ledger, Throughput

pytestmark = pytest.mark.integration


ABOUT: dict[str, str | int] = {"device": "cpu", "device_name": "x86_64, 2 threads", "dtype": "float32", "slots": 4}


def test_workers_are_listed_while_they_send_heartbeats(ledger: Ledger) -> None:
    opened(ledger, total=7)
    lease(ledger, 2)
    assert ledger.heartbeat("mini", "worker-a").pending == 5
    assert ledger.workers("mini") == ["worker-a"]
    ledger.sign_off("mini", "worker-a")
    assert ledger.workers("mini") == []


def test_a_worker_reports_its_device_its_rate_and_its_busy_share(ledger: Ledger) -> None:
    ledger.heartbeat("mini", "a", about=ABOUT)
    for _ in range(2):
        ledger.heartbeat("mini", "a", {"images": 3, "busy_s": 2.5, "wall_s": 5, "pixels": 9}, about=ABOUT)
    ledger.heartbeat("sd14", "b", {"wall_s": 3})
    ledger.heartbeat("mini", "c")
    a, c, b = ledger.worker_records()
    assert (a.name, a.model, a.device, a.device_name, a.dtype, a.slots) == ("a", "mini", *ABOUT.values())
    assert (a.images, a.images_per_s, a.busy_share) == (6, 0.6, 0.5)
    assert 0 <= a.seen_ms - a.since_ms < 60_000
    assert (c.name, c.images, c.images_per_s, c.busy_share) == ("c", 0, None, None)
    assert (b.name, b.model, b.images_per_s, b.busy_share) == ("b", "sd14", 0, 0)
    assert ledger.worker_records("sd14") == [b]


def test_the_busy_share_covers_the_last_windows_and_is_never_above_one(ledger: Ledger) -> None:
    ledger.heartbeat("mini", "a", {"images": 9, "busy_s": 9, "wall_s": 10})
    client: Any = ledger.redis
    [place] = [name for name in client.hkeys("{lf}:worker:a") if name.startswith(b"window:")]
    now = int(client.hget("{lf}:worker:a", place))
    # two minutes ago is too old; half a minute less is not
    client.hset("{lf}:worker:a", place, now - 4)
    [worker] = ledger.worker_records()
    assert (worker.images, worker.images_per_s, worker.busy_share) == (9, None, None)
    client.hset("{lf}:worker:a", place, now - 3)
    assert ledger.worker_records()[0].images_per_s == pytest.approx(0.9)
    # a step of 40 s counts when it ends
    ledger.heartbeat("mini", "a", {"busy_s": 40, "wall_s": 3})
    assert ledger.worker_records()[0].busy_share == 1


def test_a_window_that_is_reused_starts_at_zero(ledger: Ledger) -> None:
    ledger.heartbeat("mini", "a", {"images": 9, "busy_s": 9, "wall_s": 10})
    client: Any = ledger.redis
    for name in client.hkeys("{lf}:worker:a"):
        if name.startswith(b"window:"):
            client.hset("{lf}:worker:a", name, int(client.hget("{lf}:worker:a", name)) - 4)
    ledger.heartbeat("mini", "a", {"images": 1, "busy_s": 1, "wall_s": 4})
    [worker] = ledger.worker_records()
    assert (worker.images, worker.images_per_s) == (10, 0.25)


def test_a_worker_that_signs_off_is_removed_at_once_and_a_silent_one_after_a_minute(ledger: Ledger) -> None:
    ledger.heartbeat("mini", "a")
    ledger.heartbeat("mini", "b")
    assert 0 < ledger.redis.ttl("{lf}:worker:a") <= 60
    ledger.sign_off("mini", "a")
    assert [each.name for each in ledger.worker_records()] == ["b"]
    assert ledger.redis.exists("{lf}:worker:a") == 0
    ledger.redis.zadd("{lf}:workers:mini", {"b": 1})
    assert ledger.worker_records() == []


def test_the_throughput_of_a_model_sums_its_workers(ledger: Ledger) -> None:
    assert ledger.throughput("mini") is None
    for worker in ("a", "b"):
        ledger.heartbeat("mini", worker, {"images": 2, "work": 1e15, "busy_s": 1.5, "size_bytes": 10, "pixels": 4})
    ledger.heartbeat("mini", "a")
    assert ledger.throughput("mini") == Throughput(images=4, work=2e15, busy_s=3, size_bytes=20, pixels=8)


def test_the_throughput_leaves_out_wall_time(ledger: Ledger) -> None:
    ledger.heartbeat("mini", "a", {"images": 2, "work": 8, "busy_s": 1, "size_bytes": 10, "pixels": 4, "wall_s": 60})
    speed = ledger.throughput("mini")
    assert speed is not None
    assert (speed.images, speed.busy_s) == (2, 1)


def test_models_are_those_that_workers_serve_or_jobs_wait_for(ledger: Ledger) -> None:
    assert ledger.model_records() == []
    for model, worker in (("served", "b"), ("served", "a"), ("idle", "c")):
        ledger.heartbeat(model, worker)
    for model in ("served", "waiting"):
        ledger.create_batch(model, digest="d", model=model)
        ledger.append_jobs(model, before=0, total=2, parts_digest="p", closed=True)
    found = [(each.name, [worker.name for worker in each.workers], each.pending) for each in ledger.model_records()]
    assert found == [("idle", ["c"], 0), ("served", ["a", "b"], 2), ("waiting", [], 2)]
