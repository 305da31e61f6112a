from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from latentfarm import Batch, Farm, InputError
from latentfarm.doorbell import MAX_DOORBELLS, make_app, ring
from latentfarm.errors import LatentfarmError
from latentfarm.job_state import JobState
from latentfarm.ledger import Snapshot
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import image_key, manifest_key
from latentfarm.storage.manifest import ManifestReader
from latentfarm.storage.part_codec import pack, unpack
from latentfarm.storage.results import flush_due, flush_part, read_part

pytestmark = pytest.mark.integration


def work(farm: Farm, batch: Batch, *, fail: frozenset[int] = frozenset()) -> None:
    """Do what a worker does, with bytes that are not an image."""
    while found := farm.ledger.lease("mini", "worker-a", 100, lease_s=30):
        for lease in found:
            if lease.index in fail:
                farm.ledger.fail(lease, {"code": "nan", "message": "not finite"})
                continue
            body, key = f"image {lease.name}".encode(), image_key(batch.name, lease.index, 1)
            farm.bucket.put(key, body)
            sha256 = hashlib.sha256(body).hexdigest()
            farm.ledger.commit(
                [(lease, {"key": key, "sha256": sha256, "worker": "worker-a", "timings": {"encode": 0.1}})]
            )


def test_a_submitted_file_is_stored_in_the_bucket_as_numbered_jobs_and_not_in_redis(farm: Farm, tmp_path: Path) -> None:
    file = tmp_path / "cats.jsonl"
    file.write_text(
        '{"prompt": "a secret cat", "seed": 5, "num_images_per_prompt": 2}\n{"prompt": "a dog", "id": "d"}\n'
    )
    batch = farm.submit(file, batch="cats", num_inference_steps=30)
    lines = unpack(farm.bucket.get(manifest_key("cats", 0)))
    assert [(line["index"], line["prompt"], line["num_inference_steps"]) for line in lines] == [
        (0, "a secret cat", 30),
        (1, "a secret cat", 30),
        (2, "a dog", 30),
    ]
    assert [line["seed"] for line in lines[:2]] == [5, 6]
    assert batch.status().pending == 3
    client = farm.ledger.redis
    for key in client.keys("*"):
        assert b"secret cat" not in (client.dump(key) or b"")


def test_the_manifest_keeps_jobs_unchanged(farm: Farm) -> None:
    farm.submit([{"prompt": f"row {n}", "seed": n} for n in range(2345)], batch="many")
    reader = ManifestReader(farm.bucket, parts=1)
    assert [reader.job("many", index).prompt for index in (0, 999, 1000, 2344)] == [
        "row 0",
        "row 999",
        "row 1000",
        "row 2344",
    ]
    with pytest.raises(InputError, match="is not in the manifest"):
        reader.job("many", 2345)


def test_a_forged_entry_of_the_manifest_is_refused_and_its_neighbours_are_not(farm: Farm) -> None:
    farm.submit(["a", "b"], batch="cats")
    lines = unpack(farm.bucket.get(manifest_key("cats", 0)))
    farm.bucket.put(manifest_key("cats", 0), pack([{**lines[0], "width": 16_384}, lines[1]]))
    reader = ManifestReader(farm.bucket)
    with pytest.raises(InputError, match="cats/0 is not valid in the manifest"):
        reader.job("cats", 0)
    assert reader.job("cats", 1).prompt == "b"


def test_results_join_request_and_receipt_from_ledger_and_bucket(farm: Farm) -> None:
    batch = farm.submit([{"prompt": "a", "id": "x", "seed": 1}, "b", "c"], batch="cats")
    work(farm, batch, fail=frozenset({1}))
    before = list(batch.results())
    assert flush_due(farm.ledger, farm.bucket) == 1
    assert [line["index"] for line in read_part(farm.bucket, "cats", 0)] == [0, 1, 2]
    assert farm.ledger.redis.hlen("{lf}:receipts:cats") == 0
    after = list(batch.results())
    assert after == before
    assert (after[0]["id"], after[0]["request"]["seed"], after[0]["request"]["prompt"]) == ("x", 1, "a")
    assert after[1]["error"]["code"] == "nan"


def test_flushing_a_part_twice_loses_no_receipt(farm: Farm) -> None:
    batch = farm.submit(["a"], batch="cats")
    work(farm, batch)
    flush_due(farm.ledger, farm.bucket)
    before = read_part(farm.bucket, "cats", 0)
    farm.ledger.redis.zadd("{lf}:flush_queue", {"cats/0": 1})
    flush_due(farm.ledger, farm.bucket)
    assert read_part(farm.bucket, "cats", 0) == before


def test_a_part_flushed_by_two_at_once_keeps_every_receipt(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = farm.submit(["a", "b"], batch="cats")
    work(farm, batch)
    snapshot_of = farm.ledger.snapshot

    def other_flushes_first(name: str, indices: Sequence[int]) -> Snapshot:
        monkeypatch.undo()
        assert flush_part(farm.ledger, farm.bucket, name, 0)
        return snapshot_of(name, indices)

    # the other flush ends before our read of the ledger
    monkeypatch.setattr(farm.ledger, "snapshot", other_flushes_first)
    assert flush_part(farm.ledger, farm.bucket, "cats", 0)
    assert [line["key"] for line in read_part(farm.bucket, "cats", 0)] == [
        image_key("cats", 0, 1),
        image_key("cats", 1, 1),
    ]


def test_a_job_has_its_state_attempts_seed_key_and_timings(farm: Farm) -> None:
    batch = farm.submit([{"prompt": "a", "seed": 9}, "b"], batch="cats")
    assert batch.job(0).state == "pending"
    work(farm, batch, fail=frozenset({1}))
    done, failed = batch.jobs()
    assert done.model_dump() == {
        "id": "cats/0",
        "state": "done",
        "attempts": 1,
        "seed": 9,
        "key": "batches/cats/images/00000/00000000-1.png",
        "sha256": hashlib.sha256(b"image cats/0").hexdigest(),
        "worker": "worker-a",
        "error": None,
        "timings": {"encode": 0.1},
    }
    assert (failed.state, failed.error) == ("failed", {"code": "nan", "message": "not finite"})
    assert [job.id for job in batch.jobs(state=JobState.FAILED)] == ["cats/1"]
    with pytest.raises(InputError, match="the batch has the jobs 0 to 1"):
        batch.job(2)


def test_wait_ends_with_the_batch_or_at_its_timeout(farm: Farm) -> None:
    batch = farm.submit(["a"], batch="cats")
    with pytest.raises(TimeoutError, match="0 of 1"):
        batch.wait(timeout_s=0)
    work(farm, batch)
    seen: list[int] = []
    assert batch.wait(progress=lambda status: seen.append(status.done)).complete
    assert seen == [1]
    assert farm.ledger.full_parts() == []


def test_doorbells_are_few_however_large_the_batch(farm: Farm) -> None:
    app = make_app(farm.settings.redis_url)
    client = farm.ledger.redis
    assert ring(client, app, "m", 10) == 3
    assert ring(client, app, "m", 10) == 0
    ring(client, app, "m", 10**8)
    assert client.llen("render.m") == MAX_DOORBELLS
    assert max(len(message) for message in client.lrange("render.m", 0, 5)) < 1500


def test_a_missing_object_and_a_missing_bucket_differ_from_an_outage(settings: Settings) -> None:
    bucket = Bucket.connect(settings)
    with pytest.raises(MissingObjectError, match="nothing"):
        bucket.get("nothing")
    with pytest.raises(MissingObjectError):
        Bucket.connect(settings.model_copy(update={"bucket": "nowhere"})).head()


@pytest.mark.parametrize("wrong", [{"s3_endpoint_url": "http://127.0.0.1:1"}, {"s3_secret_key": SecretStr("wrong")}])
def test_a_store_that_does_not_answer_or_refuses_is_unavailable(settings: Settings, wrong: dict[str, Any]) -> None:
    with pytest.raises(LatentfarmError) as caught:
        Bucket.connect(settings.model_copy(update=wrong)).head()
    assert caught.value.exit_code == 3
