"""Images that nobody wants: what a lease that was lost has put, or what arrives long after, is removed."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import until
from tests.rendering import renderer
from tests.tiny import make_tiny

from latentfarm import Farm, UnavailableError
from latentfarm.bucket import Bucket, image_key, images_prefix
from latentfarm.ledger import Lease
from latentfarm.results import discard_leftovers, flush_full_parts
from latentfarm_worker.families import Family, load_family

pytestmark = pytest.mark.integration


def lease(farm: Farm) -> Lease:
    [found] = farm.ledger.lease("mini", "a-worker", 1, lease_s=30)
    return found


def put(farm: Farm, held: Lease) -> str:
    key = image_key(held.batch, held.index, held.epoch)
    farm.bucket.put(key, b"an image")
    return key


def commit(farm: Farm, held: Lease) -> str:
    key = put(farm, held)
    assert farm.ledger.commit(held, {"key": key, "sha256": "", "bytes": 8}) in {"done", "full"}
    return key


def images(farm: Farm) -> list[str]:
    return list(farm.bucket.keys(images_prefix("cats", 0)))


def test_an_image_that_lands_after_its_part_was_flushed_is_removed_later(farm: Farm) -> None:
    farm.submit(["a"], batch="cats")
    lost = lease(farm)
    farm.ledger.release([lost])
    kept = commit(farm, lease(farm))
    flush_full_parts(farm.ledger, farm.bucket)
    late = put(farm, lost)
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=60) == 0
    assert images(farm) == [late, kept]
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 1
    assert images(farm) == [kept]
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 0


def test_the_folder_of_a_part_whose_job_is_retried_is_left_until_it_has_ended_again(farm: Farm) -> None:
    batch = farm.submit(["a", "b"], batch="cats")
    lost = lease(farm)
    farm.ledger.release([lost])
    farm.ledger.fail(lease(farm), {"code": "nan", "message": "not finite"})
    kept = commit(farm, lease(farm))
    flush_full_parts(farm.ledger, farm.bucket)
    batch.retry()
    running = lease(farm)
    begun = put(farm, running)
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 1
    assert set(images(farm)) == {begun, kept}
    farm.ledger.commit(running, {"key": begun, "sha256": "", "bytes": 8})
    flush_full_parts(farm.ledger, farm.bucket)
    late = put(farm, lost)
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 1
    assert late not in images(farm)


@pytest.mark.parametrize("expired", [False, True])
def test_a_commit_that_is_refused_has_its_part_looked_through_again(farm: Farm, *, expired: bool) -> None:
    farm.submit(["a"], batch="cats")
    lost = lease(farm)
    farm.ledger.release([lost])
    if not expired:
        commit(farm, lease(farm))
        flush_full_parts(farm.ledger, farm.bucket)
        discard_leftovers(farm.ledger, farm.bucket, age_s=0)
    late = put(farm, lost)
    assert farm.ledger.commit(lost, {}) == ("stale" if expired else "superseded")
    if expired:
        commit(farm, lease(farm))
        flush_full_parts(farm.ledger, farm.bucket)
    assert discard_leftovers(farm.ledger, farm.bucket, age_s=0) == 1
    assert late not in images(farm)


def test_a_part_is_looked_through_by_one_worker_at_a_time_and_again_if_it_dies_over_it(farm: Farm) -> None:
    farm.submit(["a"], batch="cats")
    farm.ledger.release([lease(farm)])
    commit(farm, lease(farm))
    flush_full_parts(farm.ledger, farm.bucket)
    noted_ms, parts = farm.ledger.leftovers(age_s=0)
    assert parts == [("cats", 0)]
    assert farm.ledger.leftovers(age_s=60)[1] == []
    assert farm.ledger.leftovers(age_s=0)[1] == [("cats", 0)]
    farm.ledger.tidied("cats", 0, noted_ms=noted_ms - 1)
    assert farm.ledger.leftovers(age_s=0)[1] == [("cats", 0)]


def test_a_batch_that_is_deleted_leaves_no_part_to_look_through(farm: Farm) -> None:
    batch = farm.submit(["a"], batch="cats")
    farm.ledger.release([lease(farm)])
    commit(farm, lease(farm))
    flush_full_parts(farm.ledger, farm.bucket)
    batch.delete()
    assert farm.ledger.leftovers(age_s=0)[1] == []


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
            self.farm.ledger.cancel("cats")
            raise UnavailableError("the answer was lost")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    model = make_tiny(tmp_path_factory.mktemp("model") / "tiny")
    return load_family(model, dtype=torch.float32, device=torch.device("cpu"))


def test_a_picture_whose_lease_was_lost_before_the_store_answered_leaves_nothing(farm: Farm, family: Family) -> None:
    shape = {"width": 64, "height": 64, "num_inference_steps": 2, "scheduler": "euler"}
    farm.submit([{"prompt": "a", **shape}], batch="cats")
    bucket = LosingBucket(farm)
    with renderer(farm, family, bucket) as worker:
        worker.render_all()
        until(lambda: bool(bucket.lost) and not images(farm))
