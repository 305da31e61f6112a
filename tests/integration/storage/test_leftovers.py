"""Images that nobody wants: what a lease that was lost has put, or what arrives long after, is removed."""

from __future__ import annotations

import pytest
from tests.support.leasing import lease

from latentfarm import Farm
from latentfarm.ledger import Lease
from latentfarm.storage.keys import image_key, images_prefix
from latentfarm.storage.results import discard_leftovers, flush_full_parts, flush_part

pytestmark = pytest.mark.integration


def put(farm: Farm, held: Lease) -> str:
    key = image_key(held.batch, held.index, held.epoch)
    farm.bucket.put(key, b"an image")
    return key


def commit(farm: Farm, held: Lease) -> str:
    key = put(farm, held)
    assert farm.ledger.commit([(held, {"key": key, "sha256": "", "bytes": 8})]) in [["done"], ["full"]]
    return key


def images(farm: Farm) -> list[str]:
    return list(farm.bucket.keys(images_prefix("cats", 0)))


def test_an_image_that_lands_after_its_part_was_flushed_is_removed_later(farm: Farm) -> None:
    farm.submit(["a"], batch="cats")
    lost = lease(farm.ledger)[0]
    farm.ledger.release([lost])
    kept = commit(farm, lease(farm.ledger)[0])
    flush_full_parts(farm.ledger, farm.bucket)
    late = put(farm, lost)
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=60) == 0
    assert images(farm) == [late, kept]
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 1
    assert images(farm) == [kept]
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 0


def test_the_folder_of_a_part_whose_job_is_retried_is_left_until_it_has_ended_again(farm: Farm) -> None:
    batch = farm.submit(["a", "b"], batch="cats")
    lost = lease(farm.ledger)[0]
    farm.ledger.release([lost])
    farm.ledger.fail(lease(farm.ledger)[0], {"code": "nan", "message": "not finite"})
    kept = commit(farm, lease(farm.ledger)[0])
    flush_full_parts(farm.ledger, farm.bucket)
    batch.retry()
    running = lease(farm.ledger)[0]
    begun = put(farm, running)
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 1
    assert set(images(farm)) == {begun, kept}
    farm.ledger.commit([(running, {"key": begun, "sha256": "", "bytes": 8})])
    flush_full_parts(farm.ledger, farm.bucket)
    late = put(farm, lost)
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 1
    assert late not in images(farm)


def test_the_image_of_a_commit_whose_answer_was_lost_until_its_part_was_flushed_stays(farm: Farm) -> None:
    farm.submit(["a", "b"], batch="cats")
    lost, held = lease(farm.ledger, 2)
    farm.ledger.release([lost])
    key = commit(farm, held)
    other = commit(farm, lease(farm.ledger)[0])
    flush_full_parts(farm.ledger, farm.bucket)
    # the ledger's receipt is gone, so it cannot tell this commit from another's; the bucket's can
    assert farm.ledger.commit([(held, {"key": key, "sha256": "", "bytes": 8})]) == ["stale"]
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 1
    assert set(images(farm)) == {key, other}


def test_what_a_dead_worker_left_of_a_batch_that_was_cancelled_is_removed(farm: Farm) -> None:
    batch = farm.submit(["a"], batch="cats")
    put(farm, lease(farm.ledger)[0])
    batch.cancel()
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 1
    assert images(farm) == []


def test_a_flush_that_a_retry_overtook_leaves_what_runs(farm: Farm) -> None:
    batch = farm.submit(["a", "b"], batch="cats")
    farm.ledger.release([lease(farm.ledger)[0]])
    farm.ledger.fail(lease(farm.ledger)[0], {"code": "nan", "message": "not finite"})
    kept = commit(farm, lease(farm.ledger)[0])
    [(name, part)] = farm.ledger.full_parts()
    batch.retry()
    begun = put(farm, lease(farm.ledger)[0])
    flush_part(farm.ledger, farm.bucket, name, part)
    assert set(images(farm)) == {begun, kept}


@pytest.mark.parametrize("expired", [False, True])
def test_a_commit_that_is_refused_has_its_part_looked_through_again(farm: Farm, *, expired: bool) -> None:
    farm.submit(["a"], batch="cats")
    lost = lease(farm.ledger)[0]
    farm.ledger.release([lost])
    if not expired:
        commit(farm, lease(farm.ledger)[0])
        flush_full_parts(farm.ledger, farm.bucket)
        discard_leftovers(farm.ledger, farm.bucket, age_s=0)
    late = put(farm, lost)
    assert farm.ledger.commit([(lost, {})]) == ["stale"]
    if expired:
        commit(farm, lease(farm.ledger)[0])
        flush_full_parts(farm.ledger, farm.bucket)
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 1
    assert late not in images(farm)


def test_a_part_is_looked_through_by_one_worker_at_a_time_and_again_if_it_dies_over_it(farm: Farm) -> None:
    farm.submit(["a"], batch="cats")
    farm.ledger.release([lease(farm.ledger)[0]])
    commit(farm, lease(farm.ledger)[0])
    flush_full_parts(farm.ledger, farm.bucket)
    noted_ms, parts = farm.ledger.leftovers(age_s=0)
    assert parts == [("cats", 0)]
    assert farm.ledger.leftovers(age_s=60)[1] == []
    assert farm.ledger.leftovers(age_s=0)[1] == [("cats", 0)]
    farm.ledger.tidied("cats", 0, noted_ms=noted_ms - 1)
    assert farm.ledger.leftovers(age_s=0)[1] == [("cats", 0)]


def test_a_batch_that_is_deleted_leaves_no_part_to_look_through(farm: Farm) -> None:
    batch = farm.submit(["a"], batch="cats")
    farm.ledger.release([lease(farm.ledger)[0]])
    commit(farm, lease(farm.ledger)[0])
    flush_full_parts(farm.ledger, farm.bucket)
    batch.delete()
    assert farm.ledger.leftovers(age_s=0)[1] == []
