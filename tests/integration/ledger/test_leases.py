"""Leases: which worker gets which job, and the ends of a lease: commit, failure, release, expiry."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.support.leasing import expire, fail, lease, make_due, opened

from latentfarm.batch_state import PausedBy
from latentfarm.job_state import JobState
from latentfarm.ledger import Lease, Ledger

pytestmark = pytest.mark.integration


def test_jobs_are_leased_in_order_each_call_with_a_higher_epoch(ledger: Ledger) -> None:
    opened(ledger)
    first, second = lease(ledger, 3), lease(ledger, 9)
    assert [each.index for each in (*first, *second)] == [0, 1, 2, 3, 4]
    assert {each.epoch for each in first} == {first[0].epoch}
    assert second[0].epoch > first[0].epoch
    assert ledger.states("cats", 0, 5) == [JobState.LEASED] * 5


def request_leases(ledger: Ledger, request: str, k: int = 2, *, worker: str = "worker-a") -> list[Lease]:
    return ledger.lease("mini", worker, k, lease_s=30, request=request)


def test_a_repeated_request_returns_the_same_leases(ledger: Ledger) -> None:
    opened(ledger)
    first = request_leases(ledger, "one")
    ledger.redis.zadd("{lf}:leases", {first[0].name: 1}, xx=True)
    assert request_leases(ledger, "one", 5) == first
    assert ledger.batch("cats").leased == 2
    # with their whole time, for the first answer may have been lost long ago
    ledger.redis.delete("{lf}:sweep_lock")
    assert ledger.expire_leases() == 0
    assert [each.index for each in request_leases(ledger, "two")] == [2, 3]
    assert [each.index for each in request_leases(ledger, "one", worker="worker-b")] == [4]
    # what is remembered of a worker goes by itself
    assert 0 < ledger.redis.ttl("{lf}:lease_reply:worker-a") <= 3600


def test_a_repeated_request_returns_only_leases_that_are_still_held(ledger: Ledger) -> None:
    opened(ledger, total=4)
    first = request_leases(ledger, "one", 4)
    ledger.release(first[:1])
    ledger.commit([(first[1], {})])
    fail(ledger, first[2:3])
    assert request_leases(ledger, "one", 4) == first[3:]
    [again] = lease(ledger, worker="worker-b")
    assert again.index == 0
    assert request_leases(ledger, "one", 4) == first[3:]


def test_a_repeated_request_leases_other_jobs_if_none_is_still_held(ledger: Ledger) -> None:
    opened(ledger)
    first = request_leases(ledger, "one")
    assert expire(ledger) == 2
    again = request_leases(ledger, "one")
    assert [(each.index, each.attempts) for each in again] == [(0, 0), (1, 0)]
    assert min(each.epoch for each in again) > max(each.epoch for each in first)
    assert request_leases(ledger, "one") == again


def test_workers_that_lease_at_once_never_get_the_same_job(ledger: Ledger) -> None:
    opened(ledger, total=200)
    start = threading.Barrier(8)

    def work(_: int) -> list[int]:
        start.wait()
        mine: list[int] = []
        while found := lease(ledger, 3):
            mine += [each.index for each in found]
        return mine

    with ThreadPoolExecutor(8) as pool:
        taken = [index for mine in pool.map(work, range(8)) for index in mine]
    assert sorted(taken) == list(range(200))


def test_a_commit_ends_the_job_and_the_last_one_completes_the_batch(ledger: Ledger) -> None:
    opened(ledger, total=2)
    first, second = lease(ledger, 2)
    assert ledger.commit([(first, {"sha256": "x"})]) == ["done"]
    assert ledger.batch("cats").state == "open"
    assert ledger.commit([(second, {"sha256": "y"})]) == ["full"]
    record = ledger.batch("cats")
    assert (record.state, record.done, record.pending, record.leased) == ("complete", 2, 0, 0)
    assert ledger.full_parts() == [("cats", 0)]


def test_a_commit_that_is_repeated_after_a_lost_reply_counts_once(ledger: Ledger) -> None:
    opened(ledger)
    [held] = lease(ledger)
    assert ledger.commit([(held, {})]) == ["done"]
    assert ledger.commit([(held, {})]) == ["repeated"]
    assert ledger.batch("cats").done == 1


def test_commits_of_one_call_have_outcomes_of_their_own(ledger: Ledger) -> None:
    opened(ledger, total=4)
    old, *rest = lease(ledger, 3)
    ledger.release([old])
    [fresh] = lease(ledger)
    finished: list[tuple[Lease, dict[str, Any]]] = [(each, {}) for each in (old, fresh, *rest, rest[0])]
    assert ledger.commit(finished) == ["stale", "done", "done", "done", "repeated"]
    assert (ledger.batch("cats").done, ledger.batch("cats").leased) == (3, 0)


def test_a_worker_presumed_dead_cannot_commit_fail_renew_or_release(ledger: Ledger) -> None:
    opened(ledger, total=1)
    [old] = lease(ledger)
    assert expire(ledger) == 1
    [new] = lease(ledger)
    assert new.epoch > old.epoch
    assert new.attempts == 0
    assert ledger.commit([(old, {})]) == ["stale"]
    assert ledger.fail(old, {"code": "x", "message": "y"}) == "stale"
    assert ledger.release([old]) == 0
    assert ledger.renew([old, new], lease_s=30) == {"cats/0"}
    assert ledger.commit([(new, {})]) == ["full"]
    assert ledger.commit([(old, {})]) == ["stale"]


def test_a_renewed_lease_does_not_expire(ledger: Ledger) -> None:
    opened(ledger)
    held = lease(ledger, 2)
    assert ledger.renew(held, lease_s=30) == set()
    assert ledger.expire_leases() == 0


def test_a_released_job_runs_again_first_and_uncharged(ledger: Ledger) -> None:
    opened(ledger)
    held = lease(ledger, 2)
    assert ledger.release(held) == 2
    assert [(each.index, each.attempts) for each in lease(ledger, 3)] == [(0, 0), (1, 0), (2, 0)]


def test_after_an_outage_no_lease_expires_before_its_worker_could_renew_it(ledger: Ledger) -> None:
    opened(ledger, total=1)
    [held] = lease(ledger)
    client: Any = ledger.redis
    assert expire(ledger) == 1
    [held] = lease(ledger)
    client.zadd("{lf}:leases", {held.name: 1})
    client.delete("{lf}:sweep_lock")
    # as if Redis or every worker had been down for a minute
    client.set("{lf}:last_sweep", int(client.get("{lf}:last_sweep")) - 60_000)
    assert ledger.expire_leases(patience_s=10) == 0
    assert ledger.renew([held], lease_s=30) == set()
    client.delete("{lf}:sweep_lock", "{lf}:grace_until")
    assert ledger.expire_leases(patience_s=10) == 0
    assert ledger.commit([(held, {})]) == ["full"]


def test_epochs_rise_even_if_redis_was_restored_from_an_older_snapshot(ledger: Ledger) -> None:
    opened(ledger)
    client: Any = ledger.redis
    [before] = lease(ledger)
    client.hset("{lf}:batch:cats", mapping={"epoch": 0, "cursor": 0})
    [after] = lease(ledger)
    assert after.epoch > before.epoch


def test_a_commit_under_a_lost_lease_is_refused_in_every_state_of_the_job(ledger: Ledger) -> None:
    opened(ledger, total=2)
    old, other = lease(ledger, 2)
    assert expire(ledger) == 2
    assert ledger.commit([(old, {})]) == ["stale"]
    new = next(each for each in lease(ledger, 2) if each.index == old.index)
    assert ledger.commit([(old, {})]) == ["stale"]
    assert ledger.commit([(new, {})]) == ["done"]
    assert ledger.commit([(old, {})]) == ["stale"]
    ledger.cancel("cats")
    assert ledger.commit([(other, {})]) == ["stale"]
    ledger.mark_deleting("cats")
    assert ledger.commit([(other, {})]) == ["deleting"]
    ledger.redis.flushall()
    assert ledger.commit([(old, {})]) == ["stale"]
    assert ledger.redis.keys("*") == []


def test_a_failed_job_keeps_its_reason_and_never_blocks_the_batch(ledger: Ledger) -> None:
    opened(ledger, total=2)
    bad, good = lease(ledger, 2)
    assert ledger.fail(bad, {"code": "nan", "message": "not finite"}) == "failed"
    assert ledger.commit([(good, {})]) == ["full"]
    record = ledger.batch("cats")
    assert (record.state, record.done, record.failed) == ("complete", 1, 1)
    assert ledger.jobs("cats", [0])[0].error == {"code": "nan", "message": "not finite"}


def test_a_job_is_retried_after_its_delay_until_its_attempts_are_used(ledger: Ledger) -> None:
    opened(ledger, total=1)
    [held] = lease(ledger)
    assert ledger.fail(held, {"code": "oom"}, retry=True, delay_s=60) == "retry"
    assert lease(ledger) == []
    for outcome in ("retry", "full"):
        make_due(ledger)
        [held] = lease(ledger)
        assert ledger.fail(held, {"code": "oom"}, retry=True, delay_s=60) == outcome


def test_only_one_worker_expires_leases_at_a_time(ledger: Ledger) -> None:
    assert ledger.expire_leases() == 0
    assert ledger.expire_leases() == -1


def test_a_worker_is_leased_jobs_of_its_own_model_only(ledger: Ledger) -> None:
    opened(ledger, "cats", 1, model="sd14")
    assert lease(ledger) == []
    assert [each.batch for each in ledger.lease("sd14", "w", 1, lease_s=30)] == ["cats"]


def test_a_higher_priority_is_leased_first(ledger: Ledger) -> None:
    opened(ledger, "low", 2)
    opened(ledger, "high", 2, priority=5)
    assert [each.batch for each in lease(ledger, 4)] == ["high", "high", "low", "low"]


def test_a_new_priority_counts_from_the_next_lease(ledger: Ledger) -> None:
    opened(ledger, "a", 2)
    opened(ledger, "b", 2)
    ledger.set_priority("b", 7)
    assert [each.batch for each in lease(ledger, 3)] == ["b", "b", "a"]


def test_batches_of_one_priority_share_and_a_new_one_gets_its_share_at_once(ledger: Ledger) -> None:
    opened(ledger, "big", 1000)
    lease(ledger, 100)
    opened(ledger, "tiny", 10)
    batches = [each.batch for _ in range(4) for each in lease(ledger, 5)]
    assert batches.count("tiny") == 10


def test_a_resumed_batch_does_not_make_up_for_its_pause(ledger: Ledger) -> None:
    opened(ledger, "a", 1000)
    opened(ledger, "b", 1000)
    ledger.pause("b", PausedBy.USER)
    lease(ledger, 200)
    ledger.resume("b")
    batches = [each.batch for _ in range(4) for each in lease(ledger, 5)]
    assert batches.count("b") == 10
    # a large lease is shared
    batches = [each.batch for each in lease(ledger, 100)]
    assert batches.count("b") == 50


def test_a_late_commit_clears_a_job_of_the_losses_before_it(ledger: Ledger) -> None:
    opened(ledger, total=1)
    for _ in range(2):
        for worker in ("a", "b"):
            [held] = lease(ledger, worker=worker)
            assert expire(ledger) == 1
        assert ledger.commit([(held, {})]) == ["stale"]
    assert ledger.batch("cats").state == "open"
