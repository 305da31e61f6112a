"""What workers announce of a model is what its later submissions are checked against, and where they get defaults."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from latentfarm import Farm, InputError, InvalidRowsError
from latentfarm.ledger import Ledger
from latentfarm.model_facts import ModelFacts
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import header_key, manifest_key
from latentfarm.storage.manifest import read_header
from latentfarm.storage.part_codec import unpack
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.integration

STREAMED = SubmitOptions(validate_first=False)
TURBO = ModelFacts(
    pipeline="ZImagePipeline",
    model_digest="ab12",
    licence="apache-2.0",
    native_width=1024,
    native_height=1024,
    pixel_multiple=16,
    num_inference_steps=8,
    guidance_scale=0,
    flow=True,
    max_prompt_tokens=512,
)
BASE = TURBO.model_copy(update={"num_inference_steps": 50, "guidance_scale": 5.0, "pixel_multiple": 32})


def announce(ledger: Ledger, facts: ModelFacts, *, model: str = "mini", worker: str = "w") -> None:
    ledger.heartbeat(model, worker, about={"device": "cpu", "facts": facts.model_dump_json()})


def entries(farm: Farm, batch: str) -> list[dict[str, Any]]:
    keys = sorted(farm.bucket.keys(f"batches/{batch}/manifest/"))
    return [line for key in keys for line in unpack(farm.bucket.get(key))]


def parts(farm: Farm, batch: str) -> dict[str, bytes]:
    return {key: farm.bucket.get(key) for key in farm.bucket.keys(f"batches/{batch}/manifest/")}


def defaults_of(entry: dict[str, Any]) -> tuple[int, float]:
    return entry["num_inference_steps"], entry["guidance_scale"]


def test_facts_stay_when_their_worker_ends_and_the_latest_count(ledger: Ledger) -> None:
    assert ledger.model_facts("mini") is None
    announce(ledger, TURBO)
    ledger.sign_off("mini", "w")
    assert ledger.model_facts("mini") == TURBO

    announce(ledger, BASE, worker="x")
    announce(ledger, TURBO, model="other")
    ledger.heartbeat("mini", "without", about={"device": "cpu"})
    assert ledger.all_model_facts() == {"mini": BASE, "other": TURBO}
    assert {each.name: each.facts for each in ledger.model_records()} == {"mini": BASE, "other": TURBO}


def test_the_hash_of_a_worker_has_no_facts_and_unreadable_ones_count_as_none(ledger: Ledger) -> None:
    announce(ledger, TURBO)
    assert not ledger.redis.hexists("{lf}:worker:w", "facts")
    ledger.heartbeat("mini", "w", about={"facts": '{"pipeline": 1}'})
    assert ledger.model_facts("mini") is None
    assert ledger.all_model_facts() == {}


def test_rows_get_the_defaults_of_the_model_and_the_header_records_its_facts(farm: Farm) -> None:
    announce(farm.ledger, TURBO)

    farm.submit(["a", {"prompt": "b", "num_inference_steps": 3}, {"prompt": "c", "guidance_scale": 2}], batch="cats")

    assert [defaults_of(entry) for entry in entries(farm, "cats")] == [(8, 0), (3, 0), (8, 2)]
    header = read_header(farm.bucket, "cats")
    assert header is not None
    assert header.model_facts == TURBO
    assert header.model_facts.licence == "apache-2.0"


def test_a_default_of_the_batch_goes_before_that_of_the_model(farm: Farm) -> None:
    announce(farm.ledger, TURBO)

    farm.submit(["a"], batch="cats", num_inference_steps=4)

    assert [defaults_of(entry) for entry in entries(farm, "cats")] == [(4, 0)]


def test_a_model_that_no_worker_has_announced_is_not_checked_and_has_25_steps(farm: Farm) -> None:
    farm.submit([{"prompt": "a", "width": 72, "scheduler": "flow_euler"}], batch="cats")

    assert [defaults_of(entry) for entry in entries(farm, "cats")] == [(25, 7.5)]
    header = read_header(farm.bucket, "cats")
    assert header is not None
    assert header.model_facts is None


def test_a_row_that_does_not_fit_is_refused_before_anything_is_stored(farm: Farm) -> None:
    announce(farm.ledger, TURBO)

    with pytest.raises(InvalidRowsError, match="row 2: width 1032 is not a multiple of 16; write 1024 or 1040"):
        farm.submit(["a", {"prompt": "b", "width": 1032}], batch="cats")
    with pytest.raises(InputError, match="options: height 72 is not a multiple of 16; write 64 or 80"):
        farm.submit(["a"], batch="cats", height=72)
    with pytest.raises(InputError, match="options: height 72 is not a multiple of 16"):
        farm.submit(["a"], batch="cats", options=STREAMED, height=72)
    assert list(farm.bucket.keys("")) == []
    assert farm.ledger.batches() == []


def test_a_row_that_does_not_fit_in_a_stream_is_a_failed_job(farm: Farm) -> None:
    announce(farm.ledger, TURBO)

    batch = farm.submit(["a", {"prompt": "b", "width": 1032}], batch="cats", options=STREAMED)

    assert batch.rejected == {"width": 1}
    assert entries(farm, "cats")[1]["invalid"]["message"].startswith("row 2: width 1032 is not a multiple of 16")


def test_the_same_submission_finds_its_batch_when_the_facts_have_changed(farm: Farm) -> None:
    announce(farm.ledger, TURBO)
    rows = [{"prompt": "a", "width": 1040}]
    first = farm.submit(rows)
    before = parts(farm, first.name)

    announce(farm.ledger, BASE)
    # 1040 is no multiple of 32, so this would be refused as a new batch
    again = farm.submit(rows)

    assert again.name == first.name
    assert parts(farm, first.name) == before
    with pytest.raises(InvalidRowsError, match="width 1040 is not a multiple of 32"):
        farm.submit(rows, batch="other")


class _KilledError(Exception):
    """Stands for the end of the process."""


class _DyingBucket(Bucket):
    """The real store, until the second part of a manifest is put."""

    def __init__(self, real: Bucket) -> None:
        super().__init__(real.name, where=real.where, open_session=lambda: (real.client, real.credentials))

    def put(self, key: str, body: bytes, *, content_type: str = "application/octet-stream") -> None:
        if key == manifest_key("cats", 1):
            raise _KilledError
        super().put(key, body, content_type=content_type)


@pytest.mark.parametrize("later", [BASE, None], ids=["other", "none"])
@pytest.mark.parametrize("before", [TURBO, None], ids=["announced", "unknown"])
def test_a_continued_submission_makes_the_same_bytes_when_the_facts_have_changed(
    farm: Farm, before: ModelFacts | None, later: ModelFacts | None
) -> None:
    # of each row, the width fits one of the models only
    rows = [{"prompt": f"p{n}", "width": 1040 if n % 2 else 1024} for n in range(2_500)]

    def set_facts(facts: ModelFacts | None) -> None:
        farm.ledger.redis.delete("{lf}:model_facts")
        if facts is not None:
            announce(farm.ledger, facts)

    set_facts(before)
    farm.submit(rows, batch="cats")
    whole, digest = parts(farm, "cats"), farm.ledger.batch("cats").parts_digest
    header = farm.bucket.get(header_key("cats"))
    farm.batch("cats").delete()

    dying = Farm(replace(farm.connection, bucket=_DyingBucket(farm.bucket)))
    with pytest.raises(_KilledError):
        dying.submit(rows, batch="cats")
    assert farm.ledger.batch("cats").total == 1_000
    set_facts(later)
    farm.submit(rows, batch="cats")

    assert parts(farm, "cats") == whole
    assert farm.ledger.batch("cats").parts_digest == digest
    assert json.loads(farm.bucket.get(header_key("cats"))) == json.loads(header)
