"""Recovery of the ledger from the bucket, after Redis lost its data or restored a snapshot."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.leasing import keys_left
from tests.support.tiny_images import png, store

from latentfarm import Batch, Farm, InputError
from latentfarm.batch_kind import BatchKind
from latentfarm.errors import NotFoundError, UnavailableError
from latentfarm.job_state import JobState
from latentfarm.ledger import INTERACTIVE_PRIORITY, Lease, Restoration
from latentfarm.recovery.recover import RecoveryReport, list_batches, recover_batch
from latentfarm.storage.deletion import delete_expired
from latentfarm.storage.keys import image_key
from latentfarm.storage.orphans import collect_due
from latentfarm.storage.results import flush_due
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.integration


def work(farm: Farm, count: int, *, fail: frozenset[int] = frozenset()) -> list[Lease]:
    """Lease and commit up to ``count`` jobs, with tiny images."""
    found = farm.ledger.lease("mini", "w", count, lease_s=30)
    for lease in found:
        if lease.index in fail:
            farm.ledger.fail(lease, {"code": "nan", "message": "not finite"})
        else:
            farm.ledger.commit([(lease, store(farm, lease))])
    return found


def recover(farm: Farm, batch: str = "cats", *, dry_run: bool = False) -> RecoveryReport:
    return recover_batch(farm.ledger, farm.bucket, batch, dry_run=dry_run)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"p{n}", "seed": n} for n in range(count)]


def lines(batch: Batch) -> list[dict[str, Any]]:
    # worker and attempts are in the ledger and in flushed results only
    return [{k: v for k, v in line.items() if k not in {"attempts", "worker"}} for line in batch.results()]


def test_after_flushall_ended_jobs_are_recovered_and_only_the_others_are_rendered(farm: Farm) -> None:
    batch = farm.submit(rows(2300), batch="cats")
    work(farm, 1000, fail=frozenset({5}))
    assert flush_due(farm.ledger, farm.bucket) == 1
    work(farm, 40)
    before = lines(batch)
    assert batch.status().truncated == 1039
    farm.ledger.redis.flushall()

    found = recover(farm)
    assert (found.was, found.state, found.total, found.done, found.failed) == ("missing", "open", 2300, 1039, 1)
    assert found.changes == {"missing -> done": 1039, "missing -> failed": 1}
    assert batch.status().images_per_s is None
    assert lines(batch) == before
    assert batch.status().truncated == 1039
    assert batch.status().errors == {"nan": 1}
    rendered = []
    while some := work(farm, 500):
        rendered += [lease.index for lease in some]
    assert rendered == list(range(1040, 2300))
    assert batch.wait().state == "complete"
    assert recover(farm).changed is False


def test_a_dry_run_reports_the_same_and_changes_nothing(farm: Farm) -> None:
    farm.submit(rows(20), batch="cats")
    work(farm, 5)
    farm.ledger.redis.flushall()
    report = recover(farm, dry_run=True)
    assert keys_left(farm.ledger) == []
    assert report == recover(farm)


def test_an_old_snapshot_is_updated_and_a_job_without_its_image_runs_again(farm: Farm) -> None:
    batch = farm.submit(rows(10), batch="cats")
    first = work(farm, 2)
    client: Any = farm.ledger.redis
    snapshot = {key: client.dump(key) for key in client.keys("{lf}:*")}
    later = work(farm, 3)
    client.flushall()
    for key, value in snapshot.items():
        client.restore(key, 0, value)
    farm.bucket.delete([image_key("cats", 0, first[0].epoch)])

    assert batch.status().done == 2
    found = recover(farm)
    assert found.changes == {"done -> pending": 1, "pending -> done": 3}
    assert found.examples == {"done -> pending": [0], "pending -> done": [2, 3, 4]}
    again = work(farm, 10)
    assert [lease.index for lease in again] == [0, 5, 6, 7, 8, 9]
    assert min(lease.epoch for lease in again) > max(lease.epoch for lease in later)
    assert batch.wait().complete


def test_a_lease_held_during_a_recovery_is_lost(farm: Farm) -> None:
    batch = farm.submit(rows(3), batch="cats")
    [held] = farm.ledger.lease("mini", "w", 1, lease_s=30)
    recover(farm)
    receipt = store(farm, held)
    assert farm.ledger.commit([(held, receipt)]) == ["stale"]
    work(farm, 3)
    assert batch.wait().done == 3
    # the image of the lost lease is removed, the others stay
    assert collect_due(farm.ledger, farm.bucket, delay_s=0) == 1
    assert set(farm.bucket.keys("batches/cats/images/")) == {line["key"] for line in batch.results()}


def test_an_image_that_does_not_decode_or_is_another_jobs_is_reported_as_broken(farm: Farm) -> None:
    farm.submit(rows(3), batch="cats")
    leases = work(farm, 3)
    cut, foreign, _ = (image_key("cats", lease.index, lease.epoch) for lease in leases)
    farm.bucket.put(cut, png("cats/0")[:-30])
    farm.bucket.put(foreign, png("dogs/1"))
    farm.ledger.redis.flushall()
    found = recover(farm)
    assert (found.done, sorted(found.broken)) == (1, sorted([cut, foreign]))
    assert [lease.index for lease in work(farm, 3)] == [0, 1]


def test_a_job_that_failed_as_poison_leaves_no_image(farm: Farm) -> None:
    farm.submit(rows(1), batch="cats")
    client: Any = farm.ledger.redis
    for worker in "abcdef":
        [lost] = farm.ledger.lease("mini", worker, 1, lease_s=30)
        store(farm, lost)
        client.zadd("{lf}:leases", {lost.name: 1})
        client.delete("{lf}:sweep_lock")
        farm.ledger.expire_leases()
    assert farm.batch("cats").wait().errors == {"poison": 1}
    assert collect_due(farm.ledger, farm.bucket, delay_s=0) == 6
    assert list(farm.bucket.keys("batches/cats/images/")) == []


def test_the_latest_valid_image_of_a_job_counts(farm: Farm) -> None:
    batch = farm.submit(rows(1), batch="cats")
    farm.bucket.put(image_key("cats", 0, 5), png("cats/0"))
    farm.bucket.put(image_key("cats", 0, 7), png("cats/0"))
    farm.bucket.put(image_key("cats", 0, 9), b"cut")
    farm.ledger.redis.flushall()
    recover(farm)
    assert [line["key"] for line in batch.results()] == [image_key("cats", 0, 7)]
    assert batch.wait().complete
    assert collect_due(farm.ledger, farm.bucket, delay_s=0) == 2
    assert list(farm.bucket.keys("batches/cats/images/")) == [image_key("cats", 0, 7)]


def test_an_interrupted_submission_is_recovered_up_to_its_last_full_part_and_resumed(farm: Farm) -> None:
    def cut() -> Any:
        yield from rows(3500)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        farm.submit(cut(), batch="cats")
    farm.ledger.redis.flushall()
    found = recover(farm)
    assert found.state == "opening"
    assert found.total in {2000, 3000}
    assert farm.submit(iter(rows(3600)), batch="cats").status().total == 3600


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("killed_at", ["header", "part", "append"])
def test_a_small_submission_that_is_killed_anywhere_is_continued(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, killed_at: str, *, lost: bool
) -> None:
    put, append = farm.bucket.put, farm.ledger.append_jobs
    names = {"header": "batch.json", "part": "part-00000.jsonl.gz"}

    def killed_before(key: str, body: bytes, **more: Any) -> None:
        if key.endswith(names.get(killed_at, "-")):
            raise UnavailableError("killed")
        put(key, body, **more)

    def killed_after(*args: Any, **more: Any) -> Any:
        append(*args, **more)
        if killed_at == "append":
            raise UnavailableError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(farm.bucket, "put", killed_before)
        patch.setattr(farm.ledger, "append_jobs", killed_after)
        with pytest.raises(UnavailableError, match="killed"):
            farm.submit(rows(3), batch="cats")
    stored = {key.rpartition("/")[2] for key in farm.bucket.keys("")}
    assert stored == {*names.values()} - {names.get(killed_at)}
    if lost:
        farm.ledger.redis.flushall()
        if killed_at == "header":
            # nothing is known of the batch, and others are recovered all the same
            with pytest.raises(NotFoundError, match=r"no batch\.json"):
                recover(farm)
        else:
            # without its part, it has no job
            assert recover(farm).total == (0 if killed_at == "part" else 3)
    batch = farm.submit(rows(3), batch="cats")
    assert [job.index for job in work(farm, 9)] == [0, 1, 2]
    assert batch.wait().done == 3


def test_kind_owner_expiry_and_urgency_of_a_batch_survive_the_loss_of_the_ledger(farm: Farm) -> None:
    openai = SubmitOptions(kind=BatchKind.OPENAI, owner="alice", keep_s=7200, preempt=True)
    interactive = SubmitOptions(kind=BatchKind.INTERACTIVE, owner="bob", keep_s=3600, priority=INTERACTIVE_PRIORITY)
    farm.submit(rows(1100), batch="large", options=openai)
    farm.submit(rows(2), batch="small", options=interactive)
    before = farm.batch("large").status(), farm.batch("small").status()
    farm.ledger.redis.flushall()
    for name in list_batches(farm.bucket):
        recover(farm, name)
    for old in before:
        found = farm.batch(old.batch).status()
        # only the ledger had the time of the submission
        assert found.created > old.created
        assert found == old.model_copy(update={"created": found.created})
    assert (before[0].kind, before[0].owner, before[1].owner) == (BatchKind.OPENAI, "alice", "bob")
    assert farm.ledger.batches() == ["large"]
    assert farm.ledger.unfinished_by_owner() == {(BatchKind.OPENAI, "alice"): 1100, (BatchKind.INTERACTIVE, "bob"): 2}
    leases = farm.ledger.lease("mini", "w", 3, lease_s=30, urgent=True)
    assert [(lease.interactive, lease.urgent) for lease in leases] == [(True, True), (True, True), (False, True)]
    client: Any = farm.ledger.redis
    client.zadd("{lf}:expiring", {"small": 1}, xx=True)
    assert delete_expired(farm.ledger, farm.bucket, limit=5) == 1
    assert farm.ledger.batches(interactive=True) == ["large"]
    assert list(farm.bucket.folders("batches/")) == ["batches/large/"]
    client.zadd("{lf}:expiring", {"large": 1}, xx=True)
    assert delete_expired(farm.ledger, farm.bucket, limit=1) == 1
    assert keys_left(farm.ledger) == []
    assert list(farm.bucket.keys("")) == []


def test_the_users_decisions_survive_the_loss_of_the_ledger(farm: Farm) -> None:
    for name in ("paused", "cancelled", "urgent"):
        farm.submit(rows(3), batch=name)
    farm.batch("paused").pause("lunch")
    farm.batch("cancelled").cancel()
    farm.batch("urgent").set_priority(5)
    farm.ledger.redis.flushall()
    assert sorted(list_batches(farm.bucket)) == ["cancelled", "paused", "urgent"]
    for name in ("paused", "cancelled", "urgent"):
        recover(farm, name)
    assert farm.batch("paused").status().paused == "by its user: lunch"
    assert farm.batch("cancelled").status().cancelled == 3
    assert farm.batch("urgent").status().priority == 5
    assert {lease.batch for lease in work(farm, 99)} == {"urgent"}


def test_invalid_rows_fail_again_and_a_failure_that_only_the_ledger_has_is_kept(farm: Farm) -> None:
    invalid = {"prompt": "a", "width": 65}
    batch = farm.submit([*rows(5), invalid], batch="cats", options=SubmitOptions(validate_first=False))
    work(farm, 2, fail=frozenset({1}))
    assert recover(farm).changed is False
    assert batch.status().errors == {"nan": 1, "invalid_row": 1}
    farm.ledger.redis.flushall()
    recover(farm)
    assert batch.status().errors == {"invalid_row": 1}
    assert [job.id for job in batch.jobs(state=JobState.FAILED)] == ["cats/5"]


def test_a_submission_never_overwrites_a_batch_that_the_ledger_has_lost(farm: Farm) -> None:
    farm.submit(rows(3), batch="cats")
    farm.ledger.redis.flushall()
    with pytest.raises(InputError, match="latentfarm recover cats"):
        farm.submit(rows(3), batch="cats")
    with pytest.raises(InputError, match="other content"):
        farm.submit(["another"], batch="cats")
    assert keys_left(farm.ledger) == []
    assert recover(farm).total == 3


def test_a_recovery_killed_midway_leases_nothing_and_is_repeated(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    farm.submit(rows(3), batch="cats")
    work(farm, 1)
    monkeypatch.setattr(Restoration, "end", killed)
    with pytest.raises(KeyboardInterrupt):
        recover(farm)
    assert farm.batch("cats").status().state == "recovering"
    assert work(farm, 3) == []
    monkeypatch.undo()
    assert recover(farm).state == "open"
    assert len(work(farm, 3)) == 2


def test_a_batch_that_is_not_in_the_bucket_cannot_be_recovered(farm: Farm) -> None:
    with pytest.raises(InputError, match="nothing can be rebuilt"):
        recover(farm, "dogs")
