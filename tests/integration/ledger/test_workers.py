"""Workers in the ledger: known while they beat, with what they measured of themselves and of their model."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.leasing import lease, opened

from latentfarm.ledger import Ledger, Throughput

pytestmark = pytest.mark.integration


ABOUT: dict[str, str | int] = {"device": "cpu", "device_name": "x86_64, 2 threads", "dtype": "float32", "slots": 4}


def test_workers_are_known_while_they_beat(ledger: Ledger) -> None:
    opened(ledger, total=7)
    lease(ledger, 2)
    assert ledger.heartbeat("mini", "worker-a") == 5
    assert ledger.workers("mini") == ["worker-a"]
    ledger.sign_off("mini", "worker-a")
    assert ledger.workers("mini") == []


def test_a_worker_tells_its_device_its_rate_and_how_busy_it_was(ledger: Ledger) -> None:
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


def test_a_worker_is_as_busy_as_in_the_last_half_minutes_and_never_more_than_always(ledger: Ledger) -> None:
    ledger.heartbeat("mini", "a", {"images": 9, "busy_s": 9, "wall_s": 10})
    client: Any = ledger.redis
    [place] = [name for name in client.hkeys("lf:worker:a") if name.startswith(b"window:")]
    now = int(client.hget("lf:worker:a", place))
    # what was measured two minutes ago is past; half a minute less is not
    client.hset("lf:worker:a", place, now - 4)
    [worker] = ledger.worker_records()
    assert (worker.images, worker.images_per_s, worker.busy_share) == (9, None, None)
    client.hset("lf:worker:a", place, now - 3)
    assert ledger.worker_records()[0].images_per_s == pytest.approx(0.9)
    # a step of 40 s ends: it is counted at once
    ledger.heartbeat("mini", "a", {"busy_s": 40, "wall_s": 3})
    assert ledger.worker_records()[0].busy_share == 1


def test_a_window_that_comes_round_again_begins_anew(ledger: Ledger) -> None:
    ledger.heartbeat("mini", "a", {"images": 9, "busy_s": 9, "wall_s": 10})
    client: Any = ledger.redis
    for name in client.hkeys("lf:worker:a"):
        if name.startswith(b"window:"):
            client.hset("lf:worker:a", name, int(client.hget("lf:worker:a", name)) - 4)
    ledger.heartbeat("mini", "a", {"images": 1, "busy_s": 1, "wall_s": 4})
    [worker] = ledger.worker_records()
    assert (worker.images, worker.images_per_s) == (10, 0.25)


def test_a_worker_that_leaves_is_forgotten_at_once_and_one_that_is_silent_after_a_minute(ledger: Ledger) -> None:
    ledger.heartbeat("mini", "a")
    ledger.heartbeat("mini", "b")
    assert 0 < ledger.redis.ttl("lf:worker:a") <= 60
    ledger.sign_off("mini", "a")
    assert [each.name for each in ledger.worker_records()] == ["b"]
    assert ledger.redis.exists("lf:worker:a") == 0
    ledger.redis.zadd("lf:workers:mini", {"b": 1})
    assert ledger.worker_records() == []


def test_what_workers_measure_adds_up(ledger: Ledger) -> None:
    assert ledger.throughput("mini") is None
    for worker in ("a", "b"):
        ledger.heartbeat("mini", worker, {"images": 2, "work": 1e15, "busy_s": 1.5, "size_bytes": 10, "pixels": 4})
    ledger.heartbeat("mini", "a")
    assert ledger.throughput("mini") == Throughput(images=4, work=2e15, busy_s=3, size_bytes=20, pixels=8)


def test_the_time_on_the_clock_is_no_part_of_what_a_model_costs(ledger: Ledger) -> None:
    ledger.heartbeat("mini", "a", {"images": 2, "work": 8, "busy_s": 1, "size_bytes": 10, "pixels": 4, "wall_s": 60})
    speed = ledger.throughput("mini")
    assert speed is not None
    assert (speed.images, speed.busy_s) == (2, 1)
