"""Flushes of results: claimed, repeated, slow, refused, and of parts that are damaged."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.support.leasing import fail, flushes_due, lease

from latentfarm import Batch, Farm, InputError, UnavailableError
from latentfarm.job_state import JobState
from latentfarm.ledger import Restoration
from latentfarm.recovery.recover import recover_batch
from latentfarm.storage.bucket import MissingObjectError
from latentfarm.storage.keys import batch_prefix, results_key, results_prefix
from latentfarm.storage.orphans import collect_orphans
from latentfarm.storage.part_codec import pack, unpack
from latentfarm.storage.results import PartFlush, flush_batch, flush_due, flush_part, list_generations, read_part

pytestmark = pytest.mark.integration


def done(farm: Farm, count: int = 1) -> None:
    """Commit up to ``count`` jobs."""
    farm.ledger.commit([(held, {"key": f"key-{held.name}"}) for held in lease(farm.ledger, count)])


def ended(farm: Farm, name: str = "cats", *, failing: bool = False) -> Batch:
    """Return a batch of one job that has ended and is not flushed yet."""
    batch = farm.submit(["a"], batch=name)
    if failing:
        fail(farm.ledger, lease(farm.ledger))
    else:
        done(farm)
    return batch


def begin(farm: Farm) -> PartFlush:
    flush = PartFlush.read(farm.ledger, farm.bucket, "cats", 0)
    assert flush is not None
    return flush


def finish(farm: Farm, flush: PartFlush) -> bool:
    flush.put(farm.bucket)
    counts = flush.drop(farm.ledger)
    flush.remove_outdated(farm.ledger, farm.bucket)
    return counts


def states(farm: Farm, batch: str = "cats") -> list[str]:
    """Return the states in the newest results in the bucket."""
    generations = list_generations(farm.bucket, batch)
    return [line["state"] for part in generations for line in read_part(farm.bucket, batch, part, generations[part])]


def keys(farm: Farm) -> list[str]:
    return list(farm.bucket.keys(results_prefix("cats")))


# -- slow flushes --------------------------------------------------------------------------------------------------


def test_a_flush_that_was_slower_than_a_retry_overwrites_no_results(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = ended(farm, failing=True)
    put = farm.bucket.put

    def retried_before(*args: Any, **options: Any) -> None:
        monkeypatch.undo()
        assert batch.retry() == 1
        done(farm)
        batch.wait(timeout_s=30)
        put(*args, **options)

    # it has read that the job failed, and stores that after the retry has succeeded and its results are stored
    monkeypatch.setattr(farm.bucket, "put", retried_before)
    flush_part(farm.ledger, farm.bucket, "cats", 0)
    assert [result["state"] for result in batch.results()] == ["done"]
    assert [job.state for job in batch.jobs()] == ["done"]
    assert farm.ledger.states("cats", 0, 1) == [JobState.DONE]
    assert states(farm) == ["done"]
    # nor does it leave an object
    assert keys(farm) == [results_key("cats", 0, 1)]


def test_flushes_of_one_generation_store_the_same_bytes_whenever_they_begin(farm: Farm) -> None:
    farm.submit(["a"] * 4, batch="cats")
    fail(farm.ledger, lease(farm.ledger))
    done(farm, 3)
    first, second = begin(farm), begin(farm)
    assert finish(farm, second)
    third = begin(farm)
    assert first.body == second.body == third.body
    assert finish(farm, first)
    assert finish(farm, third)
    assert farm.bucket.get(results_key("cats", 0)) == first.body


def test_parts_flushed_by_workers_and_clients_at_once_are_stored_once_and_whole(farm: Farm) -> None:
    names = [f"b{number}" for number in range(6)]
    for name in names:
        farm.submit(["a"] * 3, batch=name)
    while farm.ledger.count_pending("mini"):
        done(farm, 100)
    start = threading.Barrier(4)

    def flush(caller: int) -> int:
        start.wait()
        if caller < 2:
            return flush_due(farm.ledger, farm.bucket)
        return sum(flush_batch(farm.ledger, farm.bucket, name) for name in names)

    with ThreadPoolExecutor(4) as pool:
        workers = list(pool.map(flush, range(4)))[:2]
    assert sum(workers) <= len(names)
    assert farm.ledger.full_parts() == []
    for name in names:
        assert [line["key"] for line in read_part(farm.bucket, name, 0)] == [f"key-{name}/{n}" for n in range(3)]


def test_a_retry_leaves_the_results_of_other_parts_as_they_are(farm: Farm) -> None:
    batch = farm.submit(["a"] * 1_001, batch="cats")
    done(farm, 1_000)
    fail(farm.ledger, lease(farm.ledger))
    assert flush_due(farm.ledger, farm.bucket) == 2
    batch.retry()
    done(farm)
    assert flush_due(farm.ledger, farm.bucket) == 1
    assert keys(farm) == [results_key("cats", 0), results_key("cats", 1, 1)]
    assert {result["state"] for result in batch.results()} == {"done"}


def test_a_flush_of_a_part_that_a_retry_opened_meanwhile_stores_nothing(farm: Farm) -> None:
    batch = ended(farm, failing=True)
    claimed = farm.ledger.claim_full_part()
    batch.retry()
    assert claimed == ("cats", 0)
    assert not flush_part(farm.ledger, farm.bucket, *claimed)
    assert keys(farm) == []


def test_objects_of_flushes_that_died_are_removed_by_the_next_flush_or_gc(farm: Farm) -> None:
    batch = ended(farm, failing=True)
    assert flush_due(farm.ledger, farm.bucket) == 1
    dead = begin(farm)
    for _ in range(2):
        batch.retry()
        fail(farm.ledger, lease(farm.ledger))
    begin(farm).put(farm.bucket)
    batch.retry()
    done(farm)
    assert len(keys(farm)) == 2
    assert flush_due(farm.ledger, farm.bucket) == 1
    assert keys(farm) == [results_key("cats", 0, 3)]
    dead.put(farm.bucket)
    assert collect_orphans(farm.ledger, farm.bucket, "cats") == 1
    assert keys(farm) == [results_key("cats", 0, 3)]


def test_a_flush_that_was_slower_than_the_deletion_of_its_batch_leaves_no_object(farm: Farm) -> None:
    batch = ended(farm)
    slow, slower = begin(farm), begin(farm)
    farm.ledger.mark_deleting("cats")
    assert not finish(farm, slow)
    batch.delete()
    assert not finish(farm, slower)
    assert list(farm.bucket.keys(batch_prefix("cats"))) == []


def test_a_deletion_that_was_slower_than_another_one_leaves_a_later_batch_of_the_name(farm: Farm) -> None:
    batch = ended(farm)

    def end_and_submit(_removed: int) -> None:
        farm.ledger.delete_batch("cats")
        farm.submit(["a dog"], batch="cats")

    batch.delete(progress=end_and_submit)
    assert batch.status().state == "open"
    assert [result["request"]["prompt"] for result in batch.results()] == ["a dog"]


def test_a_flush_that_was_slower_than_the_loss_of_the_ledger_leaves_what_a_recovery_can_use(farm: Farm) -> None:
    batch = ended(farm, failing=True)
    slow = begin(farm)
    farm.ledger.redis.flushall()
    assert not finish(farm, slow)
    assert recover_batch(farm.ledger, farm.bucket, "cats").failed == 1
    assert [result["state"] for result in batch.results()] == ["failed"]


# -- recovery ------------------------------------------------------------------------------------------------------


def test_a_recovery_takes_the_newest_results_and_later_ones_are_above_them(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = ended(farm, failing=True)
    flush_due(farm.ledger, farm.bucket)
    old = farm.bucket.get(results_key("cats", 0))
    batch.retry()
    fail(farm.ledger, lease(farm.ledger), code="flat")
    flush_due(farm.ledger, farm.bucket)
    before = list(batch.results())
    farm.bucket.put(results_key("cats", 0), old)
    farm.ledger.redis.flushall()
    listed: list[str] = []
    real = farm.bucket.keys

    def counted(prefix: str) -> Any:
        listed.append(prefix)
        return real(prefix)

    monkeypatch.setattr(farm.bucket, "keys", counted)
    recover_batch(farm.ledger, farm.bucket, "cats")
    monkeypatch.undo()
    assert listed.count(results_prefix("cats")) == 1
    assert list(batch.results()) == before
    assert farm.ledger.flushed("cats", 0) == ("complete", 1)
    assert farm.ledger.batch("cats").retries > 1
    batch.retry()
    done(farm)
    flush_due(farm.ledger, farm.bucket)
    assert states(farm) == ["done"]
    assert keys(farm) == [results_key("cats", 0, farm.ledger.batch("cats").retries)]


def test_results_above_the_clock_of_redis_are_still_below_later_ones(farm: Farm) -> None:
    batch = ended(farm, failing=True)
    ahead = 10**15
    farm.bucket.put(results_key("cats", 0, ahead), begin(farm).body)
    recover_batch(farm.ledger, farm.bucket, "cats")
    batch.retry()
    done(farm)
    flush_due(farm.ledger, farm.bucket)
    assert keys(farm) == [results_key("cats", 0, ahead + 2)]


def test_no_part_is_flushed_while_its_batch_is_being_recovered(farm: Farm) -> None:
    ended(farm, failing=True)
    slow = begin(farm)
    fields: dict[str, str | int | float] = {"digest": "d", "model": "mini", "priority": 0, "canary": 0, "budget": 0}
    Restoration(farm.ledger, "cats").begin(total=1, fields=fields)
    assert not finish(farm, slow)
    assert PartFlush.read(farm.ledger, farm.bucket, "cats", 0) is None
    assert flush_due(farm.ledger, farm.bucket) == 0
    assert recover_batch(farm.ledger, farm.bucket, "cats").failed == 1
    flushes_due(farm.ledger)
    flush_due(farm.ledger, farm.bucket)
    assert states(farm) == ["failed"]


def test_a_cancelled_job_whose_failure_was_stored_before_its_retry_is_stored_as_cancelled(farm: Farm) -> None:
    batch = ended(farm, failing=True)
    flush_due(farm.ledger, farm.bucket)
    batch.retry()
    assert states(farm) == ["failed"]
    batch.cancel()
    assert states(farm) == ["cancelled"]
    assert [job.state for job in batch.jobs()] == ["cancelled"]


# -- readers -------------------------------------------------------------------------------------------------------


def test_a_reader_whose_object_was_replaced_meanwhile_reads_the_newer_one(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = farm.submit(["a", "b"], batch="cats")
    done(farm)
    fail(farm.ledger, lease(farm.ledger))
    flush_due(farm.ledger, farm.bucket)
    get = farm.bucket.get

    def replaced_before(key: str) -> bytes:
        monkeypatch.undo()
        batch.retry()
        done(farm)
        assert flush_due(farm.ledger, farm.bucket) == 1
        return get(key)

    monkeypatch.setattr(farm.bucket, "get", replaced_before)
    assert [job["state"] for job in batch.results()] == ["done", "done"]
    assert keys(farm) == [results_key("cats", 0, 1)]


def test_results_that_the_store_does_not_have_are_unavailable_and_never_empty(farm: Farm) -> None:
    batch = ended(farm)
    flush_due(farm.ledger, farm.bucket)
    body = farm.bucket.get(results_key("cats", 0))
    farm.bucket.delete([results_key("cats", 0)])
    for read in (batch.results, batch.jobs):
        with pytest.raises(UnavailableError, match="the ledger has dropped its lines") as caught:
            list(read())
        # which callers take for a final answer
        assert not isinstance(caught.value, MissingObjectError)
    farm.bucket.put(results_key("cats", 0), body)
    assert [job.state for job in batch.jobs()] == ["done"]


@pytest.mark.parametrize("change", ["drop", "fail"])
def test_results_that_contradict_the_ledger_are_refused(farm: Farm, change: str) -> None:
    batch = ended(farm)
    flush_due(farm.ledger, farm.bucket)
    key = results_key("cats", 0)
    [line] = unpack(farm.bucket.get(key))
    farm.bucket.put(key, pack([] if change == "drop" else [{**line, "state": "failed"}]))
    with pytest.raises(InputError, match="latentfarm recover cats"):
        list(batch.results())


def test_a_deleted_batch_leaves_no_key_of_its_flushes(farm: Farm) -> None:
    batch = ended(farm, failing=True)
    flush_due(farm.ledger, farm.bucket)
    batch.retry()
    done(farm)
    flush_due(farm.ledger, farm.bucket)
    assert farm.ledger.redis.exists("{lf}:flushed:cats")
    batch.delete()
    assert farm.ledger.redis.keys("{lf}:*cats*") == []
    assert farm.ledger.full_parts() == []
