"""A render loop without its bucket or Redis: images wait, leases are kept, no image is rendered twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Event, Thread
from typing import Any, cast

import pytest
from tests.conftest import until
from tests.support.rendering import FaultyBucket, Paced, images, render_loop, submit

from latentfarm import Farm, UnavailableError
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import CommitOutcome
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.orphans import collect_due
from latentfarm.storage.results import flush_due
from latentfarm_worker.models import Family
from latentfarm_worker.supervise.shared_state import Phase

pytestmark = pytest.mark.integration


def test_images_wait_for_a_bucket_that_refuses_them_and_are_rendered_once(farm: Farm, family: Family) -> None:
    batch = submit(farm, 5)
    left = iter(range(4))
    with render_loop(farm, family, FaultyBucket(farm.bucket, lambda: next(left, None) is not None)) as loop:
        assert loop.render_all() == 5
        status = batch.wait(timeout_s=60)
    assert (status.done, status.state) == (5, "complete")
    assert {job.attempts for job in batch.jobs()} == {1}


def test_a_worker_that_stops_during_an_outage_commits_no_image_that_is_not_stored(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2)
    bucket = FaultyBucket(farm.bucket, lambda: True)
    with render_loop(farm, family, bucket) as loop:
        assert loop.render_all() == 2
        assert bucket.refused.wait(10)
    status = batch.status()
    assert (status.done, status.pending, status.leased) == (0, 2, 0)
    assert [(job.state, job.attempts) for job in batch.jobs()] == [("pending", 0)] * 2
    with render_loop(farm, family) as loop:
        loop.render_all()
    assert batch.status().done == 2


def test_without_a_bucket_leasing_stops_at_a_full_backlog_and_no_image_is_rendered_twice(
    farm: Farm, family: Family
) -> None:
    batch = submit(farm, 14, num_inference_steps=1)
    outage = Event()
    outage.set()
    steps: list[int] = []
    ended: list[int] = []
    counting_family = cast("Family", Paced(family, lambda: steps.append(1)))
    with render_loop(farm, counting_family, FaultyBucket(farm.bucket, outage.is_set), max_backlog=4) as loop:
        thread = Thread(target=lambda: ended.append(loop.render_all()))
        thread.start()
        # the limit is the backlog and two images a slot: 4 + 2 * 2; without jobs the engine makes no step
        until(lambda: loop.backlog == 8)
        before = len(steps)
        assert (batch.status().leased, batch.status().pending) == (8, 6)
        thread.join(0.5)
        assert (len(steps), loop._hooks.state.phase) == (before, Phase.IDLE)
        outage.clear()
        thread.join(60)
        assert not thread.is_alive()
        until(lambda: batch.status().done == 14)
    assert {job.attempts for job in batch.jobs()} == {1}
    assert ended == [14]


def test_a_worker_with_a_full_backlog_can_drain(farm: Farm, family: Family) -> None:
    batch = submit(farm, 14, num_inference_steps=1)
    with render_loop(farm, family, FaultyBucket(farm.bucket, lambda: True), max_backlog=1) as loop:
        thread = Thread(target=loop.render_all)
        thread.start()
        until(lambda: loop.backlog == 5)
        loop.drain(time.monotonic() + 0.2)
        thread.join(10)
        assert not thread.is_alive()
    assert (batch.status().pending, batch.status().leased) == (14, 0)
    assert {job.attempts for job in batch.jobs()} == {0}


def test_leases_of_images_that_wait_for_the_bucket_are_renewed(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2, num_inference_steps=1)
    outage = Event()
    outage.set()
    with render_loop(farm, family, FaultyBucket(farm.bucket, outage.is_set), lease_ttl_s=1) as loop:
        assert loop.render_all() == 2
        first = _earliest(farm)
        # after three times the lease they are still held
        until(lambda: _earliest(farm) > first + 3_000, timeout_s=30)
        assert farm.ledger.expire_leases() == 0
        outage.clear()
        until(lambda: batch.status().done == 2)
    assert {job.attempts for job in batch.jobs()} == {1}


def _earliest(farm: Farm) -> float:
    client: Any = farm.ledger.redis
    return min((float(score) for _, score in client.zrange("{lf}:leases", 0, -1, withscores=True)), default=0.0)


def test_an_outage_of_redis_delays_no_step_of_the_engine(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submit(farm, 3, num_inference_steps=6)
    outage = Event()
    lease, commit = farm.ledger.lease, farm.ledger.commit
    steps: list[int] = []

    def lease_unless_outage(*arguments: Any, **named: Any) -> Any:
        if outage.is_set():
            raise UnavailableError("Redis cannot be used")
        return lease(*arguments, **named)

    def commit_unless_outage(*arguments: Any, **named: Any) -> Any:
        if outage.is_set():
            raise UnavailableError("Redis cannot be used")
        return commit(*arguments, **named)

    def count() -> None:
        steps.append(1)
        # from the first step on: after a step was measured, the third job would be leased ahead
        if len(steps) == 1:
            outage.set()

    monkeypatch.setattr(farm.ledger, "lease", lease_unless_outage)
    monkeypatch.setattr(farm.ledger, "commit", commit_unless_outage)
    with render_loop(farm, cast("Family", Paced(family, count))) as loop:
        thread = Thread(target=loop.render_all)
        thread.start()
        until(lambda: loop.backlog == 2)
        assert len(steps) == 6
        outage.clear()
        thread.join(30)
        assert not thread.is_alive()
        until(lambda: batch.status().done == 3)
    assert {job.attempts for job in batch.jobs()} == {1}
    assert len(steps) == 12


def test_a_manifest_that_is_unavailable_now_is_read_later(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2)
    left = iter(range(3))

    class UnavailableManifest(Bucket):
        def get(self, key: str, **options: int) -> bytes:
            if "/manifest/" in key and next(left, None) is not None:
                raise UnavailableError("503 Slow Down")
            return super().get(key, **options)

    real = farm.bucket
    bucket = UnavailableManifest(real.name, where=real.where, open_session=lambda: (real.client, real.credentials))
    with render_loop(farm, family, bucket) as loop:
        assert loop.render_all() == 2
        until(lambda: batch.status().done == 2)
    assert {job.attempts for job in batch.jobs()} == {1}


class LosingBucket(Bucket):
    """The real bucket, but the answer to the first put of an image is lost, and the lease is lost at the same time."""

    def __init__(self, farm: Farm) -> None:
        real = farm.bucket
        super().__init__(real.name, where=real.where, open_session=lambda: (real.client, real.credentials))
        self.farm = farm
        self.lost = ""

    def put(self, key: str, body: bytes, *, content_type: str = "application/octet-stream") -> None:
        super().put(key, body, content_type=content_type)
        if "/images/" in key and not self.lost:
            assert images(self.farm) == [key]
            self.lost = key
            self.farm.ledger.cancel("b")
            raise UnavailableError("the answer was lost")


def test_an_image_whose_lease_was_lost_before_the_bucket_answered_is_collected(farm: Farm, family: Family) -> None:
    submit(farm, 1)
    bucket = LosingBucket(farm)
    with render_loop(farm, family, bucket) as loop:
        loop.render_all()
        until(lambda: bool(bucket.lost))
    assert collect_due(farm.ledger, farm.bucket, delay_s=0) == 1
    assert images(farm) == []


class LosingLedger(Ledger):
    """The real ledger, but the answer to the first commit is lost, and the part is flushed before the next try."""

    def __init__(self, farm: Farm) -> None:
        super().__init__(farm.ledger.redis, where=farm.ledger.where)
        self.farm = farm
        self.outcomes: list[CommitOutcome] = []

    def commit(self, finished: Sequence[tuple[Lease, dict[str, Any]]]) -> list[CommitOutcome]:
        outcomes = super().commit(finished)
        self.outcomes += outcomes
        if len(self.outcomes) == 1:
            assert flush_due(self.farm.ledger, self.farm.bucket) == 1
            raise UnavailableError("the answer was lost")
        return outcomes


def test_an_image_whose_repeated_commit_follows_the_flush_of_its_part_is_kept(farm: Farm, family: Family) -> None:
    batch = submit(farm, 1)
    ledger = LosingLedger(farm)
    with render_loop(farm, family, ledger=ledger) as loop:
        loop.render_all()
        until(lambda: ledger.outcomes == ["full", "stale"])
    collect_due(farm.ledger, farm.bucket, delay_s=0)
    assert images(farm) == [job.key for job in batch.jobs()]
