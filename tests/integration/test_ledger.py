from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from latentfarm.errors import InputError, UnavailableError
from latentfarm.job import JobState
from latentfarm.ledger import Lease, Ledger, Reservation, Speed
from latentfarm.ledger.ledger import CHUNK_JOBS

pytestmark = pytest.mark.integration


def opened(ledger: Ledger, batch: str = "cats", total: int = 5, *, model: str = "mini", **options: Any) -> str:
    ledger.reserve(batch, digest=f"digest of {batch}", model=model, **options)
    ledger.grow(batch, before=0, total=total, chain="c", closed=True)
    return batch


def fail(ledger: Ledger, leases: list[Lease], code: str = "nan") -> None:
    for each in leases:
        ledger.fail(each, {"code": code, "message": "not finite"})


def lease(ledger: Ledger, k: int = 1, *, worker: str = "worker-a") -> list[Lease]:
    return ledger.lease("mini", worker, k, lease_s=30)


def expire(ledger: Ledger) -> int:
    """Let every lease run out now, without waiting for it."""
    client: Any = ledger.redis
    for name in client.zrange("lf:leases", 0, -1):
        client.zadd("lf:leases", {name: 1})
    ledger.redis.delete("lf:sweeper")
    return ledger.sweep()


def test_a_reserved_batch_is_opening_and_leases_nothing(ledger: Ledger) -> None:
    assert ledger.reserve("cats", digest="d", model="mini") == Reservation("d", "opening", 0, "", fresh=True)
    assert ledger.batch("cats").state == "opening"
    assert lease(ledger) == []


def test_the_holder_of_a_name_is_told_to_whoever_wants_it_too(ledger: Ledger) -> None:
    ledger.reserve("cats", digest="d", model="mini")
    ledger.grow("cats", before=0, total=1000, chain="c1", closed=False)
    assert ledger.reserve("cats", digest="d", model="mini") == Reservation("d", "opening", 1000, "c1", fresh=False)
    assert ledger.reserve("cats", digest="e", model="mini").digest == "d"


def test_a_stored_part_is_leased_before_the_next_is_there_and_completes_only_when_all_is(ledger: Ledger) -> None:
    ledger.reserve("cats", digest="d", model="mini")
    assert ledger.grow("cats", before=0, total=1000, chain="c1", closed=False) == "opening"
    ledger.commit_all([(each, {}) for each in lease(ledger, 1000)])
    assert (ledger.batch("cats").state, ledger.batch("cats").done) == ("opening", 1000)
    assert ledger.grow("cats", before=1000, total=1001, chain="c2", closed=True) == "open"
    [last] = lease(ledger, 9)
    assert ledger.commit(last, {}) == "full"
    assert ledger.batch("cats").state == "complete"


def test_pictures_whose_text_lost_its_end_are_counted_once(ledger: Ledger) -> None:
    ledger.reserve("cats", digest="d", model="mini")
    ledger.grow("cats", before=0, total=1002, chain="c1", closed=True)
    assert ledger.batch("cats").truncated == 0
    cut: list[dict[str, Any]] = [
        {"prompt_truncated": True},
        {"negative_prompt_truncated": True},
        {"prompt_truncated": False},
    ]
    leases = [*lease(ledger, 1000), *lease(ledger, 2)]
    finished = list(zip(leases, (cut * 400)[:1002], strict=True))
    for _ in range(2):
        ledger.commit_all(finished[:700])
        ledger.commit_all(finished[700:])
    assert (ledger.batch("cats").done, ledger.batch("cats").truncated) == (1002, 668)


def test_a_batch_that_ended_before_its_manifest_did_completes_when_it_is_closed(ledger: Ledger) -> None:
    ledger.reserve("cats", digest="d", model="mini")
    ledger.grow("cats", before=0, total=1000, chain="c1", closed=False)
    ledger.commit_all([(each, {}) for each in lease(ledger, 1000)])
    assert ledger.grow("cats", before=1000, total=1000, chain="c1", closed=True) == "complete"


def test_growing_twice_changes_nothing_and_two_submissions_at_once_are_told_apart(ledger: Ledger) -> None:
    ledger.reserve("cats", digest="d", model="mini")
    wrong = {3: {"code": "invalid_row", "message": "width"}}
    for _ in range(2):
        assert ledger.grow("cats", before=0, total=1000, chain="c1", closed=False, wrong=wrong) == "opening"
    assert (ledger.batch("cats").total, ledger.batch("cats").failed) == (1000, 1)
    assert ledger.grow("cats", before=0, total=1000, chain="other", closed=False) == "elsewhere"
    assert ledger.grow("cats", before=5000, total=6000, chain="c6", closed=False) == "elsewhere"


def test_a_wrong_row_is_a_failed_job_that_nobody_leases(ledger: Ledger) -> None:
    ledger.reserve("cats", digest="d", model="mini")
    error = {"code": "invalid_row", "message": "width 65"}
    ledger.grow("cats", before=0, total=4, chain="c", closed=True, wrong={0: error, 2: error})
    record = ledger.batch("cats")
    assert (record.failed, record.invalid, record.errors) == (2, 2, {"invalid_row": 2})
    found = lease(ledger, 9)
    assert [each.index for each in found] == [1, 3]
    assert ledger.commit_all([(each, {}) for each in found]) == ["done", "full"]
    assert ledger.jobs("cats", [0])[0].error == {**error, "message": "the row was wrong; the manifest says how"}


def test_a_batch_of_wrong_rows_only_is_complete_at_once(ledger: Ledger) -> None:
    ledger.reserve("cats", digest="d", model="mini")
    wrong = {0: {"code": "invalid_row", "message": "x"}}
    assert ledger.grow("cats", before=0, total=1, chain="c", closed=True, wrong=wrong) == "complete"


def test_jobs_are_leased_in_order_each_with_a_higher_epoch(ledger: Ledger) -> None:
    opened(ledger)
    found = lease(ledger, 3) + lease(ledger, 9)
    assert [each.index for each in found] == [0, 1, 2, 3, 4]
    epochs = [each.epoch for each in found]
    assert epochs == sorted(set(epochs))
    assert ledger.states("cats", 0, 5) == [JobState.LEASED] * 5


def asked(ledger: Ledger, request: str, k: int = 2, *, worker: str = "worker-a") -> list[Lease]:
    return ledger.lease("mini", worker, k, lease_s=30, request=request)


def test_a_request_for_leases_that_is_made_again_is_answered_again(ledger: Ledger) -> None:
    opened(ledger)
    first = asked(ledger, "one")
    ledger.redis.zadd("lf:leases", {first[0].name: 1}, xx=True)
    assert asked(ledger, "one", 5) == first
    assert ledger.batch("cats").leased == 2
    # with their whole time, for the first answer may have been lost long ago
    ledger.redis.delete("lf:sweeper")
    assert ledger.sweep() == 0
    assert [each.index for each in asked(ledger, "two")] == [2, 3]
    assert [each.index for each in asked(ledger, "one", worker="worker-b")] == [4]
    # what is remembered of a worker goes by itself
    assert 0 < ledger.redis.ttl("lf:answered:worker-a") <= 3600


def test_of_leases_asked_for_again_only_those_still_held_are_given(ledger: Ledger) -> None:
    opened(ledger, total=4)
    first = asked(ledger, "one", 4)
    ledger.release(first[:1])
    ledger.commit(first[1], {})
    fail(ledger, first[2:3])
    assert asked(ledger, "one", 4) == first[3:]
    [again] = lease(ledger, worker="worker-b")
    assert again.index == 0
    assert asked(ledger, "one", 4) == first[3:]


def test_a_request_of_which_nothing_is_held_any_more_leases_anew(ledger: Ledger) -> None:
    opened(ledger)
    first = asked(ledger, "one")
    assert expire(ledger) == 2
    again = asked(ledger, "one")
    assert [(each.index, each.attempts) for each in again] == [(0, 1), (1, 1)]
    assert min(each.epoch for each in again) > max(each.epoch for each in first)
    assert asked(ledger, "one") == again


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
    assert ledger.commit(old, {}) == "superseded"
    assert ledger.fail(old, {"code": "x", "message": "y"}) == "stale"
    assert ledger.release([old]) == 0
    assert ledger.renew([old, new], lease_s=30) == {"cats/0"}
    assert ledger.commit(new, {}) == "full"
    assert ledger.commit(old, {}) == "superseded"


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


@pytest.mark.parametrize(
    ("workers", "message"),
    [(["a", "b", "a"], "lost 3 times with 2 workers"), (["a"] * 6, "lost 6 times with 1 worker")],
)
def test_a_job_that_is_lost_with_its_workers_again_and_again_fails_as_poison(
    ledger: Ledger, workers: list[str], message: str
) -> None:
    opened(ledger, total=1)
    for worker in workers:
        assert ledger.batch("cats").state == "open"
        assert len(lease(ledger, worker=worker)) == 1
        assert expire(ledger) == 1
    [record] = ledger.jobs("cats", [0])
    assert (record.state, record.attempts) == (JobState.FAILED, len(workers))
    assert record.error == {"code": "poison", "message": message, "worker": workers[-1]}
    assert ledger.batch("cats").state == "complete"


def test_after_an_outage_no_lease_is_judged_before_its_holder_could_renew_it(ledger: Ledger) -> None:
    opened(ledger, total=1)
    [held] = lease(ledger)
    client: Any = ledger.redis
    assert expire(ledger) == 1
    [held] = lease(ledger)
    client.zadd("lf:leases", {held.name: 1})
    client.delete("lf:sweeper")
    # as if Redis, or everybody who sweeps, had been away for a minute
    client.set("lf:swept", int(client.get("lf:swept")) - 60_000)
    assert ledger.sweep(patience_s=10) == 0
    assert ledger.renew([held], lease_s=30) == set()
    client.delete("lf:sweeper", "lf:judged")
    assert ledger.sweep(patience_s=10) == 0
    assert ledger.commit(held, {}) == "full"


def test_an_epoch_is_higher_than_any_before_even_if_an_older_record_came_back(ledger: Ledger) -> None:
    opened(ledger)
    client: Any = ledger.redis
    [before] = lease(ledger)
    client.hset("lf:batch:cats", mapping={"epoch": 0, "cursor": 0})
    [after] = lease(ledger)
    assert after.epoch > before.epoch


def test_an_image_that_nobody_will_want_is_told_from_one_that_may_still_count(ledger: Ledger) -> None:
    opened(ledger, total=2)
    old, other = lease(ledger, 2)
    assert expire(ledger) == 2
    assert ledger.commit(old, {}) == "stale"
    new = next(each for each in lease(ledger, 2) if each.index == old.index)
    assert ledger.commit(old, {}) == "superseded"
    assert ledger.commit(new, {}) == "done"
    assert ledger.commit(old, {}) == "superseded"
    ledger.cancel("cats")
    assert ledger.commit(other, {}) == "superseded"
    ledger.redis.flushall()
    assert ledger.commit(old, {}) == "stale"


def test_a_part_tells_whether_some_lease_of_it_ended_without_a_commit(ledger: Ledger) -> None:
    opened(ledger, total=2)
    first, second = lease(ledger, 2)
    ledger.commit(first, {})
    assert not ledger.had_returns("cats", 0)
    ledger.release([second])
    assert ledger.had_returns("cats", 0)
    [again] = lease(ledger)
    ledger.commit(again, {})
    ledger.trim("cats", 0, retries=0)
    assert not ledger.had_returns("cats", 0)


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
    opened(ledger, total=2)
    good, bad = lease(ledger, 2)
    ledger.commit(good, {"sha256": "x"})
    fail(ledger, [bad])
    assert ledger.trim("cats", 0, retries=0)
    assert ledger.full_parts() == []
    client: Any = ledger.redis
    left = {key.decode() for key in client.keys("lf:*") if b"pace" not in key}
    assert left - {"lf:swept"} == {"lf:schema", "lf:batches", "lf:batch:cats", "lf:states:cats:0", "lf:reasons:cats"}


def test_a_rate_is_measured_and_a_finished_batch_keeps_its_own(ledger: Ledger) -> None:
    opened(ledger, total=2)
    first, second = lease(ledger, 2)
    assert ledger.batch("cats").images_per_s is None
    ledger.commit(first, {})
    assert (ledger.batch("cats").images_per_s or 0) > 0
    ledger.commit(second, {})
    assert (ledger.batch("cats").images_per_s or 0) > 0


def test_several_commits_in_one_call_are_judged_one_by_one(ledger: Ledger) -> None:
    opened(ledger, total=4)
    old, *rest = lease(ledger, 3)
    ledger.release([old])
    [fresh] = lease(ledger)
    finished: list[tuple[Lease, dict[str, Any]]] = [(each, {}) for each in (old, fresh, *rest, rest[0])]
    assert ledger.commit_all(finished) == ["superseded", "done", "done", "done", "again"]
    assert (ledger.batch("cats").done, ledger.batch("cats").leased) == (3, 0)


def test_a_paused_batch_leases_nothing_until_it_is_resumed(ledger: Ledger) -> None:
    opened(ledger)
    [held] = lease(ledger)
    for _ in range(2):
        assert ledger.pause("cats", "lunch") == "open"
    assert ledger.pause("cats", "dinner") == "open"
    assert ledger.batch("cats").paused == "lunch"
    assert lease(ledger) == []
    assert ledger.waiting("mini") == 0
    assert ledger.commit(held, {}) == "done"
    for _ in range(2):
        assert ledger.resume("cats") == "open"
    assert [each.index for each in lease(ledger)] == [1]


def test_a_cancelled_batch_keeps_what_is_done_and_takes_every_lease_back(ledger: Ledger) -> None:
    opened(ledger, total=5)
    opened(ledger, "other", 5)
    found = lease(ledger, 6)
    mine = [each for each in found if each.batch == "cats"]
    assert ledger.commit(mine[0], {"sha256": "x"}) == "done"
    assert ledger.cancel("cats") == "open"
    assert ledger.cancel("cats") == "cancelled"
    record = ledger.batch("cats")
    assert (record.state, record.done, record.cancelled, record.leased, record.pending) == ("cancelled", 1, 4, 0, 0)
    assert ledger.renew(found, lease_s=30) == {each.name for each in mine}
    assert ledger.commit(mine[1], {}) == "superseded"
    assert ledger.states("cats", 0, 5) == [JobState.DONE, *[JobState.CANCELLED] * 4]
    assert [record.state for record in ledger.jobs("cats", [0, 4])] == [JobState.DONE, JobState.CANCELLED]
    assert ledger.full_parts() == [("cats", 0)]
    assert {each.batch for each in lease(ledger, 9)} == {"other"}


def test_a_cancellation_is_heard_at_once(ledger: Ledger) -> None:
    opened(ledger)
    with ledger.cancellations() as cancellations:
        assert cancellations.wait(0.01) is None
        ledger.cancel("cats")
        assert cancellations.wait(5) == "cats"


def test_retried_jobs_run_again_as_if_never_tried_and_the_others_do_not(ledger: Ledger) -> None:
    opened(ledger, total=3)
    good, bad, worse = lease(ledger, 3)
    ledger.commit(good, {"sha256": "x"})
    fail(ledger, [bad])
    fail(ledger, [worse], "scheduler")
    assert ledger.batch("cats").errors == {"nan": 1, "scheduler": 1}
    assert ledger.retry("cats", [(0, "nan"), (1, "nan")]) == 1
    assert ledger.retry("cats", [(1, "nan")]) == 0
    record = ledger.batch("cats")
    assert (record.state, record.pending, record.failed, record.errors) == ("open", 1, 1, {"scheduler": 1})
    [again] = lease(ledger, 9)
    assert (again.index, again.attempts) == (1, 0)
    assert ledger.commit(again, {}) == "full"
    assert ledger.batch("cats").state == "complete"


def test_a_part_that_was_trimmed_is_flushed_again_after_a_retry(ledger: Ledger) -> None:
    opened(ledger, total=2)
    good, bad = lease(ledger, 2)
    ledger.commit(good, {})
    fail(ledger, [bad])
    assert ledger.trim("cats", 0, retries=0)
    ledger.retry("cats", [(1, "nan")])
    assert ledger.full_parts() == []
    [again] = lease(ledger)
    assert ledger.commit(again, {}) == "full"
    assert ledger.full_parts() == [("cats", 0)]


def test_a_part_whose_jobs_run_again_is_not_forgotten_by_a_flush_that_began_before(ledger: Ledger) -> None:
    opened(ledger, total=1)
    fail(ledger, lease(ledger))
    before = ledger.batch("cats").retries
    ledger.retry("cats", [(0, "nan")])
    [again] = lease(ledger)
    ledger.commit(again, {"sha256": "x"})
    assert not ledger.trim("cats", 0, retries=before)
    assert ledger.jobs("cats", [0])[0].receipt is not None
    assert ledger.full_parts() == [("cats", 0)]


def test_a_cancelled_batch_cannot_be_retried(ledger: Ledger) -> None:
    opened(ledger)
    fail(ledger, lease(ledger))
    ledger.cancel("cats")
    with pytest.raises(InputError, match="is cancelled"):
        ledger.retry("cats", [(0, "nan")])


def test_fifty_failures_with_no_success_pause_the_batch_with_their_reasons(ledger: Ledger) -> None:
    opened(ledger, total=100)
    fail(ledger, lease(ledger, 49))
    assert ledger.batch("cats").paused == ""
    fail(ledger, lease(ledger, 1), "scheduler")
    assert ledger.batch("cats").paused == "failure budget: 50 failed and 0 done (nan 49, scheduler 1)"
    assert lease(ledger) == []
    ledger.resume("cats")
    fail(ledger, lease(ledger, 49))
    assert ledger.batch("cats").paused == ""


def test_more_than_a_tenth_failed_after_five_hundred_pauses_the_batch(ledger: Ledger) -> None:
    opened(ledger, total=2000)
    found = lease(ledger, 500)
    ledger.commit_all([(each, {}) for each in found[:449]])
    fail(ledger, found[449:499])
    assert ledger.batch("cats").paused == ""
    fail(ledger, found[499:])
    assert ledger.batch("cats").paused.startswith("failure budget: 51 failed and 449 done")


def test_a_budget_of_none_never_pauses(ledger: Ledger) -> None:
    opened(ledger, total=100, budget=0)
    fail(ledger, lease(ledger, 99))
    assert ledger.batch("cats").paused == ""


def test_wrong_rows_do_not_spend_the_failure_budget(ledger: Ledger) -> None:
    ledger.reserve("cats", digest="d", model="mini")
    wrong = {index: {"code": "invalid_row", "message": "x"} for index in range(60)}
    ledger.grow("cats", before=0, total=1000, chain="c", closed=False, wrong=wrong)
    fail(ledger, lease(ledger, 1))
    assert ledger.batch("cats").paused == ""


def test_a_canary_runs_and_the_rest_waits_until_it_is_resumed(ledger: Ledger) -> None:
    opened(ledger, total=10, hold=2)
    assert ledger.waiting("mini") == 2
    first, second = lease(ledger, 9)
    assert ledger.commit(first, {}) == "done"
    assert ledger.batch("cats").paused == ""
    fail(ledger, [second])
    assert ledger.batch("cats").paused == "canary: the first 2 jobs have ended"
    assert lease(ledger, 9) == []
    ledger.resume("cats")
    assert len(lease(ledger, 9)) == 8


def test_a_canary_of_the_whole_batch_or_more_just_completes_it(ledger: Ledger) -> None:
    opened(ledger, total=2, hold=5)
    ledger.commit_all([(each, {}) for each in lease(ledger, 9)])
    assert (ledger.batch("cats").state, ledger.batch("cats").paused) == ("complete", "")


def test_a_priority_counts_from_the_next_lease_on(ledger: Ledger) -> None:
    opened(ledger, "a", 2)
    opened(ledger, "b", 2)
    ledger.set_priority("b", 7)
    assert [each.batch for each in lease(ledger, 3)] == ["b", "b", "a"]


def test_a_batch_that_was_paused_does_not_catch_up_on_the_others_cost(ledger: Ledger) -> None:
    opened(ledger, "a", 1000)
    opened(ledger, "b", 1000)
    ledger.pause("b", "x")
    lease(ledger, 200)
    ledger.resume("b")
    batches = [each.batch for each in lease(ledger, 20)]
    assert batches.count("b") == 10


# -- workers -----------------------------------------------------------------------------------------------------

ABOUT: dict[str, str | int] = {"device": "cpu", "device_name": "x86_64, 2 threads", "dtype": "float32", "slots": 4}


def test_a_worker_tells_its_device_its_rate_and_how_busy_it_was(ledger: Ledger) -> None:
    ledger.beat("mini", "a", about=ABOUT)
    for _ in range(2):
        ledger.beat("mini", "a", {"images": 3, "busy_s": 2.5, "wall_s": 5, "pixels": 9}, about=ABOUT)
    ledger.beat("sd14", "b", {"wall_s": 3})
    ledger.beat("mini", "c")
    a, c, b = ledger.worker_records()
    assert (a.name, a.model, a.device, a.device_name, a.dtype, a.slots) == ("a", "mini", *ABOUT.values())
    assert (a.images, a.images_per_s, a.busy_share) == (6, 0.6, 0.5)
    assert 0 <= a.seen_ms - a.since_ms < 60_000
    assert (c.name, c.images, c.images_per_s, c.busy_share) == ("c", 0, None, None)
    assert (b.name, b.model, b.images_per_s, b.busy_share) == ("b", "sd14", 0, 0)
    assert ledger.worker_records("sd14") == [b]


def test_a_worker_is_as_busy_as_in_the_last_half_minutes_and_never_more_than_always(ledger: Ledger) -> None:
    ledger.beat("mini", "a", {"images": 9, "busy_s": 9, "wall_s": 10})
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
    ledger.beat("mini", "a", {"busy_s": 40, "wall_s": 3})
    assert ledger.worker_records()[0].busy_share == 1


def test_a_window_that_comes_round_again_begins_anew(ledger: Ledger) -> None:
    ledger.beat("mini", "a", {"images": 9, "busy_s": 9, "wall_s": 10})
    client: Any = ledger.redis
    for name in client.hkeys("lf:worker:a"):
        if name.startswith(b"window:"):
            client.hset("lf:worker:a", name, int(client.hget("lf:worker:a", name)) - 4)
    ledger.beat("mini", "a", {"images": 1, "busy_s": 1, "wall_s": 4})
    [worker] = ledger.worker_records()
    assert (worker.images, worker.images_per_s) == (10, 0.25)


def test_a_worker_that_leaves_is_forgotten_at_once_and_one_that_is_silent_after_a_minute(ledger: Ledger) -> None:
    ledger.beat("mini", "a")
    ledger.beat("mini", "b")
    assert 0 < ledger.redis.ttl("lf:worker:a") <= 60
    ledger.leave("mini", "a")
    assert [each.name for each in ledger.worker_records()] == ["b"]
    assert ledger.redis.exists("lf:worker:a") == 0
    ledger.redis.zadd("lf:workers:mini", {"b": 1})
    assert ledger.worker_records() == []


def test_the_time_on_the_clock_is_no_part_of_what_a_model_costs(ledger: Ledger) -> None:
    ledger.beat("mini", "a", {"images": 2, "work": 8, "busy_s": 1, "size_bytes": 10, "pixels": 4, "wall_s": 60})
    speed = ledger.speed("mini")
    assert speed is not None
    assert (speed.images, speed.busy_s) == (2, 1)


def test_a_forgotten_batch_leaves_no_key(ledger: Ledger) -> None:
    opened(ledger, total=5)
    good, bad, _ = lease(ledger, 3)
    ledger.commit(good, {})
    fail(ledger, [bad])
    ledger.begin_delete("cats")
    assert ledger.commit(good, {}) in {"superseded", "again"}
    ledger.forget("cats")
    client: Any = ledger.redis
    assert [key for key in client.keys("lf:*") if b"pace" not in key] == []
    ledger.forget("cats")


def test_an_unknown_batch_is_told(ledger: Ledger) -> None:
    for action in (ledger.resume, ledger.cancel, ledger.begin_delete, ledger.batch):
        with pytest.raises(InputError, match="batch 'dogs' is not known"):
            action("dogs")


def test_what_workers_measure_adds_up(ledger: Ledger) -> None:
    assert ledger.speed("mini") is None
    for worker in ("a", "b"):
        ledger.beat("mini", worker, {"images": 2, "work": 1e15, "busy_s": 1.5, "size_bytes": 10, "pixels": 4})
    ledger.beat("mini", "a")
    assert ledger.speed("mini") == Speed(images=4, work=2e15, busy_s=3, size_bytes=20, pixels=8)


def test_a_redis_that_is_not_there_is_told_without_its_password() -> None:
    gone = Ledger.connect("redis://:secret@127.0.0.1:1/0")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1") as caught:
        gone.ping()
    assert "secret" not in str(caught.value)
