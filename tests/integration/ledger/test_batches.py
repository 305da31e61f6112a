"""Batches in the ledger, from their creation to their deletion."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.leasing import draft_all, fail, lease, opened

from latentfarm.batch_state import BatchState, PausedBy
from latentfarm.errors import InputError, UnavailableError
from latentfarm.job_state import JobState
from latentfarm.ledger import Ledger, Reservation, WorkerSignal
from latentfarm.ledger.constants import CHUNK_JOBS

pytestmark = pytest.mark.integration


def test_a_new_batch_is_opening_and_leases_nothing(ledger: Ledger) -> None:
    assert ledger.create_batch("cats", digest="d", model="mini") == Reservation("d", BatchState.OPENING, 0, "")
    assert ledger.batch("cats").state == "opening"
    assert lease(ledger) == []


def test_a_name_that_is_taken_returns_the_batch_that_has_it(ledger: Ledger) -> None:
    ledger.create_batch("cats", digest="d", model="mini")
    ledger.append_jobs("cats", before=0, total=1000, parts_digest="c1", closed=False)
    assert ledger.create_batch("cats", digest="d", model="mini") == Reservation("d", BatchState.OPENING, 1000, "c1")
    assert ledger.create_batch("cats", digest="e", model="mini").digest == "d"


def test_a_stored_part_is_leased_before_the_next_one_is_stored(ledger: Ledger) -> None:
    ledger.create_batch("cats", digest="d", model="mini")
    assert ledger.append_jobs("cats", before=0, total=1000, parts_digest="c1", closed=False) == "opening"
    ledger.commit([(each, {}) for each in lease(ledger, 1000)])
    assert (ledger.batch("cats").state, ledger.batch("cats").done) == ("opening", 1000)
    assert ledger.append_jobs("cats", before=1000, total=1001, parts_digest="c2", closed=True) == "open"
    [last] = lease(ledger, 9)
    assert ledger.commit([(last, {})]) == ["full"]
    assert ledger.batch("cats").state == "complete"


def test_truncated_prompts_are_counted_once(ledger: Ledger) -> None:
    ledger.create_batch("cats", digest="d", model="mini")
    ledger.append_jobs("cats", before=0, total=1002, parts_digest="c1", closed=True)
    assert ledger.batch("cats").truncated == 0
    cut: list[dict[str, Any]] = [
        {"prompt_truncated": True},
        {"negative_prompt_truncated": True},
        {"prompt_truncated": False},
    ]
    leases = [*lease(ledger, 1000), *lease(ledger, 2)]
    finished = list(zip(leases, (cut * 400)[:1002], strict=True))
    for _ in range(2):
        ledger.commit(finished[:700])
        ledger.commit(finished[700:])
    assert (ledger.batch("cats").done, ledger.batch("cats").truncated) == (1002, 668)


def test_a_batch_whose_jobs_ended_first_completes_when_its_manifest_is_closed(ledger: Ledger) -> None:
    ledger.create_batch("cats", digest="d", model="mini")
    ledger.append_jobs("cats", before=0, total=1000, parts_digest="c1", closed=False)
    ledger.commit([(each, {}) for each in lease(ledger, 1000)])
    assert ledger.append_jobs("cats", before=1000, total=1000, parts_digest="c1", closed=True) == "complete"


def test_appending_twice_changes_nothing_and_two_submissions_at_once_conflict(ledger: Ledger) -> None:
    ledger.create_batch("cats", digest="d", model="mini")
    invalid = {3: {"code": "invalid_row", "message": "width"}}
    for _ in range(2):
        assert (
            ledger.append_jobs("cats", before=0, total=1000, parts_digest="c1", closed=False, invalid=invalid)
            == "opening"
        )
    assert (ledger.batch("cats").total, ledger.batch("cats").failed) == (1000, 1)
    assert ledger.append_jobs("cats", before=0, total=1000, parts_digest="other", closed=False) == "conflict"
    assert ledger.append_jobs("cats", before=5000, total=6000, parts_digest="c6", closed=False) == "conflict"


def test_an_invalid_row_is_a_failed_job_and_never_leased(ledger: Ledger) -> None:
    ledger.create_batch("cats", digest="d", model="mini")
    error = {"code": "invalid_row", "message": "width 65"}
    ledger.append_jobs("cats", before=0, total=4, parts_digest="c", closed=True, invalid={0: error, 2: error})
    record = ledger.batch("cats")
    assert (record.failed, record.invalid, record.errors) == (2, 2, {"invalid_row": 2})
    found = lease(ledger, 9)
    assert [each.index for each in found] == [1, 3]
    assert ledger.commit([(each, {}) for each in found]) == ["done", "full"]
    assert ledger.jobs("cats", [0])[0].error == {**error, "message": "the row is invalid; the manifest has the reason"}


def test_a_batch_of_invalid_rows_is_complete_at_once(ledger: Ledger) -> None:
    ledger.create_batch("cats", digest="d", model="mini")
    invalid = {0: {"code": "invalid_row", "message": "x"}}
    assert ledger.append_jobs("cats", before=0, total=1, parts_digest="c", closed=True, invalid=invalid) == "complete"


def test_an_untouched_job_costs_no_memory_and_a_touched_one_costs_a_byte(ledger: Ledger) -> None:
    opened(ledger, total=50_000_000)
    assert ledger.redis.exists("{lf}:states:cats:0") == 0
    lease(ledger, 10)
    assert ledger.redis.strlen("{lf}:states:cats:0") == 10


def test_states_beyond_the_first_million_are_in_a_chunk_of_their_own(ledger: Ledger) -> None:
    opened(ledger, total=2 * CHUNK_JOBS)
    ledger.redis.hset("{lf}:batch:cats", "cursor", CHUNK_JOBS - 1)
    lease(ledger, 2)
    assert ledger.states("cats", CHUNK_JOBS - 2, CHUNK_JOBS + 2) == [
        JobState.PENDING,
        JobState.LEASED,
        JobState.LEASED,
        JobState.PENDING,
    ]


def test_a_flushed_part_leaves_only_its_states(ledger: Ledger) -> None:
    opened(ledger, total=2)
    good, bad = lease(ledger, 2)
    ledger.commit([(good, {"sha256": "x"})])
    fail(ledger, [bad])
    assert ledger.drop_flushed("cats", 0, retries=0)
    assert ledger.full_parts() == []
    client: Any = ledger.redis
    left = {key.decode() for key in client.keys("{lf}:*") if b":rate:" not in key}
    assert left - {"{lf}:last_sweep"} == {
        "{lf}:schema",
        "{lf}:events",
        "{lf}:batches",
        "{lf}:batch:cats",
        "{lf}:states:cats:0",
        "{lf}:error_counts:cats",
    }


def test_a_rate_is_measured_and_a_finished_batch_keeps_its_own(ledger: Ledger) -> None:
    opened(ledger, total=2)
    first, second = lease(ledger, 2)
    assert ledger.batch("cats").images_per_s is None
    ledger.commit([(first, {})])
    assert (ledger.batch("cats").images_per_s or 0) > 0
    ledger.commit([(second, {})])
    assert (ledger.batch("cats").images_per_s or 0) > 0


def test_a_paused_batch_leases_nothing_until_it_is_resumed(ledger: Ledger) -> None:
    opened(ledger)
    [held] = lease(ledger)
    for _ in range(2):
        assert ledger.pause("cats", PausedBy.USER, "lunch") == "open"
    assert ledger.pause("cats", PausedBy.SUBMISSION, "dinner") == "open"
    assert ledger.batch("cats").paused == "lunch"
    assert lease(ledger) == []
    assert ledger.count_pending("mini") == 0
    assert ledger.commit([(held, {})]) == ["done"]
    for _ in range(2):
        assert ledger.resume("cats") == "open"
    assert [each.index for each in lease(ledger)] == [1]


def test_a_cancelled_batch_keeps_finished_jobs_and_loses_every_lease(ledger: Ledger) -> None:
    opened(ledger, total=5)
    opened(ledger, "other", 5)
    found = lease(ledger, 6)
    mine = [each for each in found if each.batch == "cats"]
    assert ledger.commit([(mine[0], {"sha256": "x"})]) == ["done"]
    assert ledger.cancel("cats") == "open"
    assert ledger.cancel("cats") == "cancelled"
    record = ledger.batch("cats")
    assert (record.state, record.done, record.cancelled, record.leased, record.pending) == ("cancelled", 1, 4, 0, 0)
    assert ledger.renew(found, lease_s=30) == {each.name for each in mine}
    assert ledger.commit([(mine[1], {})]) == ["stale"]
    assert ledger.states("cats", 0, 5) == [JobState.DONE, *[JobState.CANCELLED] * 4]
    assert [record.state for record in ledger.jobs("cats", [0, 4])] == [JobState.DONE, JobState.CANCELLED]
    assert ledger.full_parts() == [("cats", 0)]
    assert {each.batch for each in lease(ledger, 9)} == {"other"}


def test_a_cancellation_is_published_at_once(ledger: Ledger) -> None:
    opened(ledger)
    with ledger.signals() as signals:
        assert signals.wait(0.01) is None
        ledger.cancel("cats")
        assert signals.wait(5) == WorkerSignal("cancelled", "cats")


def test_retried_jobs_run_again_with_no_attempts_charged(ledger: Ledger) -> None:
    opened(ledger, total=3)
    good, bad, worse = lease(ledger, 3)
    ledger.commit([(good, {"sha256": "x"})])
    fail(ledger, [bad])
    fail(ledger, [worse], "scheduler")
    assert ledger.batch("cats").errors == {"nan": 1, "scheduler": 1}
    assert ledger.retry("cats", [(0, "nan"), (1, "nan")]) == 1
    assert ledger.retry("cats", [(1, "nan")]) == 0
    record = ledger.batch("cats")
    assert (record.state, record.pending, record.failed, record.errors) == ("open", 1, 1, {"scheduler": 1})
    [again] = lease(ledger, 9)
    assert (again.index, again.attempts) == (1, 0)
    assert ledger.commit([(again, {})]) == ["full"]
    assert ledger.batch("cats").state == "complete"


def test_a_flushed_part_is_flushed_again_after_a_retry(ledger: Ledger) -> None:
    opened(ledger, total=2)
    good, bad = lease(ledger, 2)
    ledger.commit([(good, {})])
    fail(ledger, [bad])
    assert ledger.drop_flushed("cats", 0, retries=0)
    ledger.retry("cats", [(1, "nan")])
    assert ledger.full_parts() == []
    [again] = lease(ledger)
    assert ledger.commit([(again, {})]) == ["full"]
    assert ledger.full_parts() == [("cats", 0)]


def test_a_flush_that_a_retry_overtook_removes_no_receipts(ledger: Ledger) -> None:
    opened(ledger, total=1)
    fail(ledger, lease(ledger))
    before = ledger.batch("cats").retries
    ledger.retry("cats", [(0, "nan")])
    [again] = lease(ledger)
    ledger.commit([(again, {"sha256": "x"})])
    assert not ledger.drop_flushed("cats", 0, retries=before)
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
    assert ledger.batch("cats").paused == "50 failed and 0 done (nan 49, scheduler 1)"
    assert lease(ledger) == []
    ledger.resume("cats")
    fail(ledger, lease(ledger, 49))
    assert ledger.batch("cats").paused == ""


def test_more_than_a_tenth_failed_after_five_hundred_pauses_the_batch(ledger: Ledger) -> None:
    opened(ledger, total=2000)
    found = lease(ledger, 500)
    ledger.commit([(each, {}) for each in found[:449]])
    fail(ledger, found[449:499])
    assert ledger.batch("cats").paused == ""
    fail(ledger, found[499:])
    assert ledger.batch("cats").paused.startswith("51 failed and 449 done")


def test_a_failure_budget_of_zero_never_pauses(ledger: Ledger) -> None:
    opened(ledger, total=100, budget=0)
    fail(ledger, lease(ledger, 99))
    assert ledger.batch("cats").paused == ""


def test_invalid_rows_do_not_count_against_the_failure_budget(ledger: Ledger) -> None:
    ledger.create_batch("cats", digest="d", model="mini")
    invalid = {index: {"code": "invalid_row", "message": "x"} for index in range(60)}
    ledger.append_jobs("cats", before=0, total=1000, parts_digest="c", closed=False, invalid=invalid)
    fail(ledger, lease(ledger, 1))
    assert ledger.batch("cats").paused == ""


def test_jobs_behind_the_canary_wait_until_the_batch_is_resumed(ledger: Ledger) -> None:
    opened(ledger, total=10, canary=2)
    assert ledger.count_pending("mini") == 2
    first, second = lease(ledger, 9)
    assert ledger.commit([(first, {})]) == ["done"]
    assert ledger.batch("cats").paused == ""
    fail(ledger, [second])
    assert ledger.batch("cats").paused == "the first 2 jobs have ended"
    assert lease(ledger, 9) == []
    ledger.resume("cats")
    assert len(lease(ledger, 9)) == 8


def test_a_canary_longer_than_the_batch_does_not_pause_it(ledger: Ledger) -> None:
    opened(ledger, total=2, canary=5)
    ledger.commit([(each, {}) for each in lease(ledger, 9)])
    assert (ledger.batch("cats").state, ledger.batch("cats").paused) == ("complete", "")


def test_a_deleted_batch_leaves_no_key(ledger: Ledger) -> None:
    opened(ledger, total=5)
    good, bad, _ = lease(ledger, 3)
    ledger.commit([(good, {})])
    fail(ledger, [bad])
    ledger.mark_deleting("cats")
    assert ledger.commit([(good, {})]) == ["repeated"]
    assert ledger.commit([(bad, {})]) == ["deleting"]
    ledger.delete_batch("cats")
    client: Any = ledger.redis
    assert [key for key in client.keys("{lf}:*") if b":rate:" not in key] == [b"{lf}:events"]
    ledger.delete_batch("cats")


def test_an_unknown_batch_is_refused_by_name(ledger: Ledger) -> None:
    for action in (ledger.resume, ledger.cancel, ledger.mark_deleting, ledger.batch):
        with pytest.raises(InputError, match="batch 'dogs' is unknown"):
            action("dogs")


def test_the_error_of_an_unavailable_redis_has_no_password() -> None:
    gone = Ledger.connect("redis://:secret@127.0.0.1:1/0")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1") as caught:
        gone.ping()
    assert "secret" not in str(caught.value)


def test_drafts_are_no_failures_and_are_cancelled_wherever_they_are(ledger: Ledger) -> None:
    total = 1_070_000
    opened(ledger, total=total, budget=0.5)
    client: Any = ledger.redis
    # at the beginning, across a block of states that one read has, and in another string of them
    for start in (0, 65_530, 2_000, total - 5):
        client.hset("{lf}:batch:cats", "cursor", start)
        if start == 2_000:
            fail(ledger, lease(ledger, 50))
        else:
            draft_all(ledger, lease(ledger, 10))
    # none of the jobs is done, but not all have failed
    assert (ledger.batch("cats").failed, ledger.batch("cats").paused_by) == (50, "")
    assert ledger.drop_flushed("cats", 0, retries=0) is False
    drafted = list(ledger.indices("cats", JobState.DRAFTED))
    assert len(drafted) == ledger.batch("cats").drafted == 25
    assert ledger.cancel("cats") == "open"
    record = ledger.batch("cats")
    assert (record.failed, record.cancelled, record.drafted, record.retries) == (50, total - 50, 0, 1)
    assert list(ledger.indices("cats", JobState.DRAFTED)) == []
    assert {job.state for job in ledger.jobs("cats", drafted[:20])} == {JobState.CANCELLED}
    assert not client.exists("{lf}:checkpoints:cats")
    assert [part for _, part in ledger.full_parts()] == [0, 2, 65, 1069]
