from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from latentfarm.errors import InputError, UnavailableError
from latentfarm.job import JobState
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.ledger import CHUNK_JOBS, MAX_ATTEMPTS

pytestmark = pytest.mark.integration


def opened(ledger: Ledger, batch: str = "cats", total: int = 5, *, model: str = "mini", priority: int = 0) -> str:
    ledger.reserve(batch, digest=f"digest of {batch}", model=model, total=total, priority=priority)
    ledger.open(batch)
    return batch


def lease(ledger: Ledger, k: int = 1, *, lease_s: float = 30) -> list[Lease]:
    return ledger.lease("mini", "worker-a", k, lease_s=lease_s)


def expire(ledger: Ledger) -> int:
    """Let every lease run out now, without waiting for it."""
    client: Any = ledger.redis
    for name in client.zrange("lf:leases", 0, -1):
        client.zadd("lf:leases", {name: 1})
    ledger.redis.delete("lf:sweeper")
    return ledger.sweep()


def test_a_reserved_batch_is_opening_and_leases_nothing(ledger: Ledger) -> None:
    assert ledger.reserve("cats", digest="d", model="mini", total=3) == "new"
    assert ledger.batch("cats").state == "opening"
    assert lease(ledger) == []


def test_the_same_batch_again_is_found_and_another_of_its_name_refused(ledger: Ledger) -> None:
    ledger.reserve("cats", digest="d", model="mini", total=3)
    assert ledger.reserve("cats", digest="d", model="mini", total=3) == "same"
    with pytest.raises(InputError, match="exists with other content"):
        ledger.reserve("cats", digest="e", model="mini", total=3)


def test_jobs_are_leased_in_order_each_with_a_higher_epoch(ledger: Ledger) -> None:
    opened(ledger)
    found = lease(ledger, 3) + lease(ledger, 9)
    assert [each.index for each in found] == [0, 1, 2, 3, 4]
    assert [each.epoch for each in found] == [1, 2, 3, 4, 5]
    assert ledger.states("cats", 0, 5) == [JobState.LEASED] * 5


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


def test_an_untouched_job_costs_no_byte_and_a_touched_one_costs_one(ledger: Ledger) -> None:
    opened(ledger, total=50_000_000)
    assert ledger.redis.exists("lf:states:cats:0") == 0
    lease(ledger, 10)
    assert ledger.redis.strlen("lf:states:cats:0") == 10


def test_states_beyond_the_first_million_lie_in_their_own_chunk(ledger: Ledger) -> None:
    opened(ledger, total=2 * CHUNK_JOBS)
    ledger.redis.hset("lf:batch:cats", "cursor", CHUNK_JOBS - 1)
    lease(ledger, 2)
    assert ledger.states("cats", CHUNK_JOBS - 2, CHUNK_JOBS + 2) == [
        JobState.PENDING,
        JobState.LEASED,
        JobState.LEASED,
        JobState.PENDING,
    ]


def test_a_commit_ends_the_job_and_the_last_one_completes_the_batch(ledger: Ledger) -> None:
    opened(ledger, total=2)
    first, second = lease(ledger, 2)
    assert ledger.commit(first, {"sha256": "x"}) == "done"
    assert ledger.batch("cats").state == "open"
    assert ledger.commit(second, {"sha256": "y"}) == "full"
    record = ledger.batch("cats")
    assert (record.state, record.done, record.pending, record.leased) == ("complete", 2, 0, 0)
    assert ledger.full_parts() == [("cats", 0)]


def test_a_commit_repeated_after_a_lost_answer_counts_once(ledger: Ledger) -> None:
    opened(ledger)
    [held] = lease(ledger)
    assert ledger.commit(held, {}) == "done"
    assert ledger.commit(held, {}) == "again"
    assert ledger.batch("cats").done == 1


def test_a_worker_presumed_dead_cannot_commit_fail_renew_or_release(ledger: Ledger) -> None:
    opened(ledger, total=1)
    [old] = lease(ledger)
    assert expire(ledger) == 1
    [new] = lease(ledger)
    assert new.epoch > old.epoch
    assert new.attempts == 1
    assert ledger.commit(old, {}) == "stale"
    assert ledger.fail(old, {"code": "x", "message": "y"}) == "stale"
    assert ledger.release([old]) == 0
    assert ledger.renew([old, new], lease_s=30) == {"cats/0"}
    assert ledger.commit(new, {}) == "full"
    assert ledger.commit(old, {}) == "stale"


def test_a_lease_that_is_held_does_not_run_out(ledger: Ledger) -> None:
    opened(ledger)
    held = lease(ledger, 2)
    assert ledger.renew(held, lease_s=30) == set()
    assert ledger.sweep() == 0


def test_a_released_job_runs_again_first_and_uncharged(ledger: Ledger) -> None:
    opened(ledger)
    held = lease(ledger, 2)
    assert ledger.release(held) == 2
    assert [(each.index, each.attempts) for each in lease(ledger, 3)] == [(0, 0), (1, 0), (2, 0)]


def test_a_job_that_loses_every_worker_fails_as_poison(ledger: Ledger) -> None:
    opened(ledger, total=1)
    for _ in range(MAX_ATTEMPTS):
        assert len(lease(ledger)) == 1
        assert expire(ledger) == 1
    [record] = ledger.jobs("cats", [0])
    assert (record.state, record.attempts) == (JobState.FAILED, MAX_ATTEMPTS)
    assert record.error is not None
    assert record.error["code"] == "poison"
    assert ledger.batch("cats").state == "complete"


def test_a_failed_job_keeps_its_reason_and_never_blocks_the_batch(ledger: Ledger) -> None:
    opened(ledger, total=2)
    bad, good = lease(ledger, 2)
    assert ledger.fail(bad, {"code": "nan", "message": "not finite"}) == "failed"
    assert ledger.commit(good, {}) == "full"
    record = ledger.batch("cats")
    assert (record.state, record.done, record.failed) == ("complete", 1, 1)
    assert ledger.jobs("cats", [0])[0].error == {"code": "nan", "message": "not finite"}


def test_a_job_that_may_run_again_does_so_after_its_delay_until_its_attempts_are_used(ledger: Ledger) -> None:
    opened(ledger, total=1)
    [held] = lease(ledger)
    assert ledger.fail(held, {"code": "oom"}, retry=True, delay_s=60) == "retry"
    assert lease(ledger) == []
    ledger.redis.zadd("lf:again:cats", {"0": 1})
    for outcome in ("retry", "full"):
        [held] = lease(ledger)
        assert ledger.fail(held, {"code": "oom"}, retry=True) == outcome


def test_a_higher_priority_is_leased_first(ledger: Ledger) -> None:
    opened(ledger, "low", 2)
    opened(ledger, "high", 2, priority=5)
    assert [each.batch for each in lease(ledger, 4)] == ["high", "high", "low", "low"]


def test_batches_of_one_priority_share_and_a_newcomer_gets_its_share_at_once(ledger: Ledger) -> None:
    opened(ledger, "big", 1000)
    lease(ledger, 100)
    opened(ledger, "tiny", 10)
    batches = [each.batch for each in lease(ledger, 20)]
    assert 9 <= batches.count("tiny") <= 10


def test_a_worker_is_leased_jobs_of_its_own_model_only(ledger: Ledger) -> None:
    opened(ledger, "cats", 1, model="sd14")
    assert lease(ledger) == []
    assert [each.batch for each in ledger.lease("sd14", "w", 1, lease_s=30)] == ["cats"]


def test_only_one_worker_sweeps_at_a_time(ledger: Ledger) -> None:
    assert ledger.sweep() == 0
    assert ledger.sweep() == -1


def test_workers_are_known_while_they_beat(ledger: Ledger) -> None:
    opened(ledger, total=7)
    lease(ledger, 2)
    assert ledger.beat("mini", "worker-a") == 5
    assert ledger.workers("mini") == ["worker-a"]
    ledger.leave("mini", "worker-a")
    assert ledger.workers("mini") == []


def test_trimming_a_part_leaves_only_the_states(ledger: Ledger) -> None:
    opened(ledger, total=1)
    [held] = lease(ledger)
    ledger.commit(held, {"sha256": "x"})
    ledger.trim("cats", 0)
    assert ledger.full_parts() == []
    client: Any = ledger.redis
    left = {key.decode() for key in client.keys("lf:*") if b"pace" not in key}
    assert left == {"lf:batches", "lf:batch:cats", "lf:states:cats:0"}


def test_a_rate_is_measured_and_a_finished_batch_keeps_its_own(ledger: Ledger) -> None:
    opened(ledger, total=2)
    first, second = lease(ledger, 2)
    assert ledger.batch("cats").images_per_s is None
    ledger.commit(first, {})
    assert (ledger.batch("cats").images_per_s or 0) > 0
    ledger.commit(second, {})
    assert (ledger.batch("cats").images_per_s or 0) > 0


def test_a_redis_that_is_not_there_is_told_without_its_password() -> None:
    gone = Ledger.connect("redis://:secret@127.0.0.1:1/0")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1") as caught:
        gone.ping()
    assert "secret" not in str(caught.value)
