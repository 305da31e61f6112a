"""Jobs in a render loop with the real engine, Redis and bucket: an image, another try or an error code."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any, cast

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import until
from tests.support.rendering import SMALL, Paced, render_loop, submit
from tests.support.tiny import make_tiny

from latentfarm import Farm, UnavailableError
from latentfarm.ledger import Lease
from latentfarm.schedulers import resolve
from latentfarm_worker.images.encode import encode_image
from latentfarm_worker.models import Family, load_family

pytestmark = pytest.mark.integration


def test_a_cancelled_batch_frees_its_slots_within_two_steps(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2, num_inference_steps=500)
    with render_loop(farm, family) as loop:
        thread = Thread(target=loop.render_all)
        thread.start()
        until(lambda: batch.status().leased == 2)
        batch.cancel()
        thread.join(30)
        assert not thread.is_alive()
    status = batch.status()
    assert (status.state, status.done, status.cancelled, status.leased) == ("cancelled", 0, 2, 0)


def test_a_batch_under_the_name_of_a_deleted_one_is_rendered_from_its_own_prompts(farm: Farm, family: Family) -> None:
    with render_loop(farm, family) as loop:
        for prompt in ("a cat", "a dog"):
            batch = submit(farm, 1, prompt=prompt)
            loop.render_all()
            until(lambda: batch.status().done == 1)  # noqa: B023 - called here only
            [result] = batch.results()
            image = Image.open(io.BytesIO(farm.bucket.get(result["key"])), formats=["PNG"])
            assert image.text["parameters"].startswith(prompt)  # type: ignore[attr-defined]
            batch.delete()


def test_a_worker_reports_its_throughput_since_the_last_report(farm: Farm, family: Family) -> None:
    submit(farm, 3)
    with render_loop(farm, family) as loop:
        loop.render_all()

    def fail(_: dict[str, float]) -> None:
        raise UnavailableError("Redis is unavailable")

    # what a failed report contained is reported by the next
    with pytest.raises(UnavailableError):
        loop.metrics.report(fail)
    measured = loop.metrics.report(dict)
    assert (measured["images"], measured["pixels"], measured["work"]) == (3, 3 * 64 * 64, 3 * 64 * 64 * 3 * 2)
    assert measured["busy_s"] > 0
    assert measured["size_bytes"] > 3 * 64
    assert loop.metrics.report(dict).keys() == {"wall_s"}


def test_a_job_whose_image_cannot_be_encoded_fails_with_the_message_of_the_encoder(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_for_jpeg(pixels: torch.Tensor, image_format: str, *, metadata: Mapping[str, str]) -> bytes:
        if image_format == "jpeg":
            raise ValueError("no such quality")
        return encode_image(pixels, image_format, metadata=metadata)

    monkeypatch.setattr("latentfarm_worker.images.receipt.encode_image", fail_for_jpeg)
    rows = [{"prompt": "p", **SMALL, "image_format": image_format} for image_format in ("jpeg", "png")]
    batch = farm.submit(rows, batch="b")
    with render_loop(farm, family) as loop:
        while not batch.status().complete:
            loop.render_all()
    failed, done = batch.jobs()
    assert failed.error is not None
    assert (failed.state, failed.attempts, failed.error["code"]) == ("failed", 3, "encode_error")
    assert failed.error["message"] == "ValueError: no such quality"
    assert (done.state, done.attempts) == ("done", 1)


def test_a_job_that_the_same_worker_leases_again_replaces_its_older_image(farm: Farm, family: Family) -> None:
    batch = submit(farm, 1)
    steps: list[int] = []
    first: set[Lease] = set()

    def lose_the_lease_in_the_first_step() -> None:
        steps.append(1)
        if len(steps) == 1:
            first.update(loop._leases.held())
            farm.ledger.redis.zadd("{lf}:leases", {"b/0": 0})
            assert farm.ledger.expire_leases() == 1
            # after an empty answer no job is requested for 0.2 s
            time.sleep(0.3)
        if len(steps) == 2:
            until(lambda: bool(loop._leases.held() - first), timeout_s=10)

    with render_loop(farm, cast("Family", Paced(family, lose_the_lease_in_the_first_step))) as loop:
        assert loop.render_all() == 1
        until(lambda: batch.status().done == 1, timeout_s=10)
    # at most two steps of the older image, then three of the newer
    assert len(steps) in {4, 5}
    assert loop.metrics.images() == {"done": 1, "drafted": 0, "failed": 0, "retried": 0, "lost": 0}
    assert [job.attempts for job in batch.jobs()] == [1]


def test_a_job_that_cannot_be_rendered_fails_alone_with_an_error(farm: Farm, family: Family) -> None:
    rows = [{"prompt": "good", **SMALL}, {"prompt": "bad", **SMALL, "scheduler_options": {"no_such_option": 1}}]
    batch = farm.submit(rows, batch="b")
    with render_loop(farm, family) as loop:
        loop.render_all()
    good, bad = batch.jobs()
    assert good.state == "done"
    assert bad.error is not None
    assert (bad.state, bad.error["code"]) == ("failed", "scheduler")
    assert "no_such_option" in bad.error["message"]
    assert batch.status().complete


def test_a_receipt_records_a_truncated_text(farm: Farm, family: Family) -> None:
    long = "a long (and:1.3) winding road, " * 9
    cut: list[dict[str, Any]] = [{"prompt": long}, {"prompt": "road", "negative_prompt": long}]
    whole = [{**row, "prompt_syntax": "a1111", "clip_skip": 1} for row in cut]
    batch = farm.submit([{**row, **SMALL} for row in (*cut, *whole, {"prompt": "a", "clip_skip": 2})], batch="b")
    with render_loop(farm, family) as loop:
        loop.render_all()
    lines = list(batch.results())
    truncated = [(line.get("prompt_truncated"), line.get("negative_prompt_truncated")) for line in lines]
    assert truncated == [(True, None), (False, True), (False, None), (False, None), (None, None)]
    requested = [(line["request"].get("prompt_syntax"), line["request"].get("clip_skip")) for line in lines]
    assert requested == [(None, None), (None, None), ("a1111", 1), ("a1111", 1), (None, 2)]
    assert lines[4]["error"]["code"] == "clip_skip_out_of_range"
    assert (batch.status().truncated, batch.status().done) == (2, 4)


def test_a_job_gives_the_same_file_alone_and_beside_other_jobs(farm: Farm, family: Family) -> None:
    batch = submit(farm, 6)
    with render_loop(farm, family) as loop:
        loop.render_all()
    receipts = list(batch.results())
    first = [farm.bucket.get(line["key"]) for line in receipts]
    assert {"plan", "model_digest", "device", "torch", "dtype", "micro_batch"} <= receipts[0].keys()
    farm.ledger.redis.flushall()
    farm.ledger.create_batch("b", digest="again", model="mini")
    farm.ledger.append_jobs("b", before=0, total=6, parts_digest="c", closed=True)
    farm.ledger.redis.hset("{lf}:batch:b", "cursor", 5)
    with render_loop(farm, family) as loop:
        assert loop.render_all() == 1
    [again] = (line for line in farm.batch("b").results() if line["state"] == "done")
    assert again["key"] != receipts[5]["key"]
    assert farm.bucket.get(again["key"]) == first[5]


def test_xl_and_turbo_images_equal_those_of_the_diffusers_pipeline(farm: Farm, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "xl", kind="sdxl")
    turbo = {"scheduler": "euler_a", "scheduler_options": {"timestep_spacing": "trailing"}, "guidance_scale": 0.0}
    rows = [
        {"prompt": "plain", **SMALL},
        {"prompt": "with a negative prompt", "negative_prompt": "blurry", **SMALL, "width": 96},
        {"prompt": "in one step", **SMALL, **turbo, "num_inference_steps": 1},
    ]
    batch = farm.submit(rows, batch="b")
    with render_loop(farm, load_family(folder, dtype=torch.float32, device=torch.device("cpu"))) as loop:
        assert loop.render_all() == 3
    receipts = list(batch.results())
    assert [line["state"] for line in receipts] == ["done"] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        for line in receipts:
            request = dict(line["request"])
            scheduler, options = request.pop("scheduler"), request.pop("scheduler_options")
            kind = getattr(diffusers, resolve(scheduler).class_name)
            pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
            generator = torch.Generator("cpu").manual_seed(request.pop("seed"))
            request["negative_prompt"] = request["negative_prompt"] or None
            expected = np.asarray(pipe(**request, generator=generator).images[0]).astype(int)
            with Image.open(io.BytesIO(farm.bucket.get(line["key"]))) as image:
                assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1, line["request"]
