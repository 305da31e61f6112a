"""Orphaned images, stored under leases that were lost, are removed; every committed image stays."""

from __future__ import annotations

import pytest
from tests.support.leasing import lease

from latentfarm import Farm
from latentfarm.ledger import Lease, Restoration
from latentfarm.storage.keys import image_key, images_prefix, intermediates_key, intermediates_prefix
from latentfarm.storage.orphans import collect_due, collect_orphans
from latentfarm.storage.results import flush_due

pytestmark = pytest.mark.integration


def put(farm: Farm, held: Lease) -> str:
    key = image_key(held.batch, held.index, held.epoch)
    farm.bucket.put(key, b"an image")
    return key


def commit(farm: Farm, held: Lease) -> str:
    key = put(farm, held)
    assert farm.ledger.commit([(held, {"key": key, "sha256": "", "bytes": 8})]) in [["done"], ["full"]]
    return key


def images(farm: Farm) -> set[str]:
    return set(farm.bucket.keys(images_prefix("cats", 0)))


def due(farm: Farm) -> int:
    """Collect the batches that have ended by now."""
    return collect_due(farm.ledger, farm.bucket, delay_s=0)


def lose(farm: Farm) -> Lease:
    """Lease a job and lose the lease again."""
    [lost] = lease(farm.ledger)
    farm.ledger.release([lost])
    return lost


def test_an_orphan_is_removed_some_time_after_its_batch_has_completed(farm: Farm) -> None:
    farm.submit(["a"], batch="cats")
    lost = lose(farm)
    kept = commit(farm, lease(farm.ledger)[0])
    flush_due(farm.ledger, farm.bucket)
    late = put(farm, lost)
    assert collect_due(farm.ledger, farm.bucket, delay_s=60) == 0
    assert images(farm) == {late, kept}
    assert due(farm) == 1
    assert images(farm) == {kept}
    assert farm.ledger.claim_orphans(delay_s=0) is None


def test_the_intermediates_of_a_lost_lease_are_removed_too(farm: Farm) -> None:
    farm.submit(["a"], batch="cats")
    lost = lose(farm)
    [held] = lease(farm.ledger)
    commit(farm, held)
    kept = intermediates_key("cats", 0, held.epoch)
    for key in (kept, intermediates_key("cats", 0, lost.epoch)):
        farm.bucket.put(key, b"a strip")
    assert due(farm) == 1
    assert list(farm.bucket.keys(intermediates_prefix("cats", 0))) == [kept]


def test_a_batch_that_lost_no_lease_is_never_listed(farm: Farm) -> None:
    farm.submit(["a"], batch="cats")
    commit(farm, lease(farm.ledger)[0])
    assert farm.ledger.claim_orphans(delay_s=0) is None


def test_in_a_batch_that_runs_only_ended_jobs_are_collected(farm: Farm) -> None:
    batch = farm.submit(["a", "b", "c", "d"], batch="cats")
    lost = lease(farm.ledger, 4)
    farm.ledger.release(lost)
    orphans = [put(farm, each) for each in lost]
    done, failed, leased = lease(farm.ledger, 3)
    kept = {commit(farm, done), put(farm, leased)}
    farm.ledger.fail(failed, {"code": "nan", "message": "not finite"})
    assert batch.status().pending == 1
    assert collect_orphans(farm.ledger, farm.bucket, "cats") == 2
    assert images(farm) == {*kept, *orphans[2:]}


def test_a_job_that_is_retried_keeps_its_images_until_it_has_ended_again(farm: Farm) -> None:
    batch = farm.submit(["a", "b"], batch="cats")
    lost = lose(farm)
    farm.ledger.fail(lease(farm.ledger)[0], {"code": "nan", "message": "not finite"})
    kept = commit(farm, lease(farm.ledger)[0])
    flush_due(farm.ledger, farm.bucket)
    batch.retry()
    [running] = lease(farm.ledger)
    begun = put(farm, running)
    assert due(farm) == 0
    assert collect_orphans(farm.ledger, farm.bucket, "cats") == 0
    farm.ledger.commit([(running, {"key": begun, "sha256": "", "bytes": 8})])
    flush_due(farm.ledger, farm.bucket)
    put(farm, lost)
    assert due(farm) == 1
    assert images(farm) == {begun, kept}


def test_an_image_stays_if_the_reply_to_its_commit_was_lost_until_its_part_was_flushed(farm: Farm) -> None:
    farm.submit(["a", "b"], batch="cats")
    lost, held = lease(farm.ledger, 2)
    farm.ledger.release([lost])
    key = commit(farm, held)
    other = commit(farm, lease(farm.ledger)[0])
    flush_due(farm.ledger, farm.bucket)
    # the ledger has no receipt any more to compare with; the bucket has
    assert farm.ledger.commit([(held, {"key": key, "sha256": "", "bytes": 8})]) == ["stale"]
    assert due(farm) == 0
    assert images(farm) == {key, other}


def test_what_a_dead_worker_stored_of_a_cancelled_batch_is_removed(farm: Farm) -> None:
    batch = farm.submit(["a"], batch="cats")
    put(farm, lease(farm.ledger)[0])
    batch.cancel()
    assert due(farm) == 1
    assert images(farm) == set()


@pytest.mark.parametrize("collected", [False, True])
def test_a_stale_commit_has_its_batch_collected_again(farm: Farm, *, collected: bool) -> None:
    farm.submit(["a"], batch="cats")
    lost = lose(farm)
    kept = commit(farm, lease(farm.ledger)[0])
    flush_due(farm.ledger, farm.bucket)
    if collected:
        due(farm)
    put(farm, lost)
    assert farm.ledger.commit([(lost, {})]) == ["stale"]
    assert due(farm) == 1
    assert images(farm) == {kept}


def test_a_batch_is_collected_by_one_worker_at_a_time_and_again_if_that_one_dies(farm: Farm) -> None:
    farm.submit(["a"], batch="cats")
    lost = lose(farm)
    commit(farm, lease(farm.ledger)[0])
    claimed = farm.ledger.claim_orphans(delay_s=0)
    assert claimed is not None
    assert claimed[0] == "cats"
    assert farm.ledger.claim_orphans(delay_s=0) is None
    # an hour later
    farm.ledger.redis.zadd("{lf}:orphans", {"cats": 1})
    assert (farm.ledger.claim_orphans(delay_s=0) or ("", 0))[0] == "cats"
    # a stale commit meanwhile queues the batch again: the claim does not end that
    farm.ledger.commit([(lost, {})])
    farm.ledger.resolve_orphans(*claimed)
    assert farm.ledger.claim_orphans(delay_s=0) is not None


def test_images_are_never_removed_if_a_recovery_began_since_their_states_were_read(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm.submit(["a"], batch="cats")
    lost = lose(farm)
    both = {put(farm, lost), commit(farm, lease(farm.ledger)[0])}
    keys = farm.bucket.keys

    def recovered_meanwhile(prefix: str) -> list[str]:
        fields: dict[str, str | int | float] = {"digest": "d", "model": "mini", "priority": 0, "canary": 0, "budget": 0}
        Restoration(farm.ledger, "cats").begin(total=1, fields=fields)
        return list(keys(prefix))

    monkeypatch.setattr(farm.bucket, "keys", recovered_meanwhile)
    assert collect_orphans(farm.ledger, farm.bucket, "cats") == 0
    monkeypatch.undo()
    assert images(farm) == both
    # and none while the batch is being recovered
    assert collect_orphans(farm.ledger, farm.bucket, "cats") == 0


def test_results_that_are_no_part_of_ours_stop_the_collection_of_their_batch_only(farm: Farm) -> None:
    for name in ("cats", "dogs"):
        farm.submit(["a"], batch=name)
        [lost] = lease(farm.ledger)
        farm.ledger.release([lost])
        put(farm, lost)
        commit(farm, lease(farm.ledger)[0])
    flush_due(farm.ledger, farm.bucket)
    farm.bucket.put("batches/cats/results/part-00000.jsonl.gz", b"not gzip")
    assert due(farm) == 1
    assert len(images(farm)) == 2
    assert len(list(farm.bucket.keys(images_prefix("dogs", 0)))) == 1


def test_a_deleted_batch_is_not_collected(farm: Farm) -> None:
    batch = farm.submit(["a"], batch="cats")
    lose(farm)
    commit(farm, lease(farm.ledger)[0])
    flush_due(farm.ledger, farm.bucket)
    batch.delete()
    assert farm.ledger.claim_orphans(delay_s=0) is None
