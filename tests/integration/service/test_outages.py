"""A worker's loop whose store or queue is away: pictures wait, leases are kept, nothing is rendered twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Event, Thread
from typing import Any, cast

import pytest
from tests.conftest import until
from tests.support.rendering import FaultyBucket, Paced, images, renderer, submit

from latentfarm import Farm, UnavailableError
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import CommitOutcome
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.results import discard_leftovers, flush_full_parts
from latentfarm_worker.models import Family
from latentfarm_worker.supervise.shared_state import Phase

pytestmark = pytest.mark.integration


def test_pictures_wait_out_a_store_that_refuses_and_are_rendered_once(farm: Farm, family: Family) -> None:
    batch = submit(farm, 5)
    left = iter(range(4))
    with renderer(farm, family, FaultyBucket(farm.bucket, lambda: next(left, None) is not None)) as worker:
        assert worker.render_all() == 5
        status = batch.wait(timeout_s=60)
    assert (status.done, status.state) == (5, "complete")
    assert {job.attempts for job in batch.jobs()} == {1}


def test_a_worker_stopped_during_an_outage_commits_nothing_that_is_not_stored(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2)
    bucket = FaultyBucket(farm.bucket, lambda: True)
    with renderer(farm, family, bucket) as worker:
        assert worker.render_all() == 2
        assert bucket.refused.wait(10)
    status = batch.status()
    assert (status.done, status.pending, status.leased) == (0, 2, 0)
    assert [(job.state, job.attempts) for job in batch.jobs()] == [("pending", 0)] * 2
    with renderer(farm, family) as worker:
        worker.render_all()
    assert batch.status().done == 2


def test_while_the_store_is_away_leasing_stops_at_a_full_backlog_and_nothing_is_rendered_twice(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfarm_worker.service.render_loop._MAX_BACKLOG", 4)
    batch = submit(farm, 14, num_inference_steps=1)
    away = Event()
    away.set()
    steps: list[int] = []
    made: list[int] = []
    family_that_counts = cast("Family", Paced(family, lambda: steps.append(1)))
    with renderer(farm, family_that_counts, FaultyBucket(farm.bucket, away.is_set)) as worker:
        thread = Thread(target=lambda: made.append(worker.render_all()))
        thread.start()
        # two slots' worth beyond the backlog: 4 + 2 * 2, and no step is made with nothing to do
        until(lambda: worker._delivery.waiting == 8)
        before = len(steps)
        assert (batch.status().leased, batch.status().pending) == (8, 6)
        thread.join(0.5)
        assert (len(steps), worker._host.pulse.phase) == (before, Phase.IDLE)
        away.clear()
        thread.join(60)
        assert not thread.is_alive()
        until(lambda: batch.status().done == 14)
    assert {job.attempts for job in batch.jobs()} == {1}
    assert made == [14]


def test_a_full_backlog_does_not_keep_a_worker_from_draining(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfarm_worker.service.render_loop._MAX_BACKLOG", 1)
    batch = submit(farm, 14, num_inference_steps=1)
    with renderer(farm, family, FaultyBucket(farm.bucket, lambda: True)) as worker:
        thread = Thread(target=worker.render_all)
        thread.start()
        until(lambda: worker._delivery.waiting == 5)
        worker.drain(until=time.monotonic() + 0.2)
        thread.join(10)
        assert not thread.is_alive()
    assert (batch.status().pending, batch.status().leased) == (14, 0)
    assert {job.attempts for job in batch.jobs()} == {0}


def test_leases_of_pictures_that_wait_for_the_store_are_renewed(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2, num_inference_steps=1)
    away = Event()
    away.set()
    with renderer(farm, family, FaultyBucket(farm.bucket, away.is_set), lease_s=1) as worker:
        assert worker.render_all() == 2
        first = _earliest(farm)
        # three leases later they are still ours
        until(lambda: _earliest(farm) > first + 3_000, timeout_s=30)
        assert farm.ledger.expire_leases() == 0
        away.clear()
        until(lambda: batch.status().done == 2)
    assert {job.attempts for job in batch.jobs()} == {1}


def _earliest(farm: Farm) -> float:
    client: Any = farm.ledger.redis
    return min((float(score) for _, score in client.zrange("lf:leases", 0, -1, withscores=True)), default=0.0)


def test_a_queue_that_is_away_keeps_no_engine_from_its_next_step(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submit(farm, 3, num_inference_steps=6)
    away = Event()
    lease, commit = farm.ledger.lease, farm.ledger.commit
    steps: list[int] = []

    def lease_unless_away(*arguments: Any, **named: Any) -> Any:
        if away.is_set():
            raise UnavailableError("Redis cannot be used")
        return lease(*arguments, **named)

    def commit_unless_away(*arguments: Any, **named: Any) -> Any:
        if away.is_set():
            raise UnavailableError("Redis cannot be used")
        return commit(*arguments, **named)

    def count() -> None:
        steps.append(1)
        # from the first step on: once a step was measured the third job would be leased ahead
        if len(steps) == 1:
            away.set()

    monkeypatch.setattr(farm.ledger, "lease", lease_unless_away)
    monkeypatch.setattr(farm.ledger, "commit", commit_unless_away)
    with renderer(farm, cast("Family", Paced(family, count))) as worker:
        thread = Thread(target=worker.render_all)
        thread.start()
        until(lambda: worker._delivery.waiting == 2)
        assert len(steps) == 6
        away.clear()
        thread.join(30)
        assert not thread.is_alive()
        until(lambda: batch.status().done == 3)
    assert {job.attempts for job in batch.jobs()} == {1}
    assert len(steps) == 12


def test_a_manifest_that_cannot_be_read_now_is_read_later(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2)
    left = iter(range(3))

    class Unread(Bucket):
        def get(self, key: str) -> bytes:
            if "/manifest/" in key and next(left, None) is not None:
                raise UnavailableError("503 Slow Down")
            return super().get(key)

    bucket = Unread(farm.bucket.client, farm.bucket.name, where=farm.bucket.where)
    with renderer(farm, family, bucket) as worker:
        assert worker.render_all() == 2
        until(lambda: batch.status().done == 2)
    assert {job.attempts for job in batch.jobs()} == {1}


class LosingBucket(Bucket):
    """The real store, but the answer to the first put of an image is lost, and with it, at that moment, the lease."""

    def __init__(self, farm: Farm) -> None:
        super().__init__(farm.bucket.client, farm.bucket.name, where=farm.bucket.where)
        self.farm = farm
        self.lost = ""

    def put(self, key: str, body: bytes, *, content_type: str = "application/octet-stream") -> None:
        super().put(key, body, content_type=content_type)
        if "/images/" in key and not self.lost:
            assert images(self.farm) == [key]
            self.lost = key
            self.farm.ledger.cancel("b")
            # what the cancellation noted: a worker that was stopped for long puts its picture after that was looked at
            self.farm.ledger.redis.delete("lf:leftovers")
            raise UnavailableError("the answer was lost")


def test_a_picture_whose_lease_was_lost_before_the_store_answered_leaves_nothing(farm: Farm, family: Family) -> None:
    submit(farm, 1)
    bucket = LosingBucket(farm)
    with renderer(farm, family, bucket) as worker:
        worker.render_all()
        until(lambda: bool(bucket.lost and farm.ledger.leftovers(age_s=0)[1]))
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 1
    assert images(farm) == []


class LosingLedger(Ledger):
    """The real ledger, but the answer to the first commit is lost, and no other comes before the part is flushed."""

    def __init__(self, farm: Farm) -> None:
        super().__init__(farm.ledger.redis, where=farm.ledger.where)
        self.farm = farm
        self.outcomes: list[CommitOutcome] = []

    def commit(self, finished: Sequence[tuple[Lease, dict[str, Any]]]) -> list[CommitOutcome]:
        outcomes = super().commit(finished)
        self.outcomes += outcomes
        if len(self.outcomes) == 1:
            assert flush_full_parts(self.farm.ledger, self.farm.bucket) == 1
            raise UnavailableError("the answer was lost")
        return outcomes


def test_a_picture_whose_commit_was_answered_only_after_its_part_was_flushed_stays(farm: Farm, family: Family) -> None:
    batch = submit(farm, 1)
    ledger = LosingLedger(farm)
    with renderer(farm, family, ledger=ledger) as worker:
        worker.render_all()
        until(lambda: ledger.outcomes == ["full", "stale"])
    discard_leftovers(farm.ledger, farm.bucket, age_s=0)
    assert images(farm) == [job.key for job in batch.jobs()]
