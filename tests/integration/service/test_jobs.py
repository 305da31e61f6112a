"""What becomes of a job in a worker's loop, of the real engine, Redis and store: a picture, another try or a reason."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from threading import Thread
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import until
from tests.support.rendering import SMALL, renderer, submit
from tests.support.tiny import make_tiny

from latentfarm import Farm
from latentfarm.schedulers import resolve
from latentfarm_worker.models import Family, load_family

pytestmark = pytest.mark.integration


def test_a_cancelled_batch_frees_its_slots_before_the_next_step_but_one(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2, num_inference_steps=500)
    with renderer(farm, family) as worker:
        thread = Thread(target=worker.render_all)
        thread.start()
        until(lambda: batch.status().leased == 2)
        batch.cancel()
        thread.join(10)
        assert not thread.is_alive()
    status = batch.status()
    assert (status.state, status.done, status.cancelled, status.leased) == ("cancelled", 0, 2, 0)


def test_a_worker_measures_what_it_renders(farm: Farm, family: Family) -> None:
    submit(farm, 3)
    with renderer(farm, family) as worker:
        worker.render_all()
    measured = worker.meter.take()
    assert (measured["images"], measured["pixels"], measured["work"]) == (3, 3 * 64 * 64, 3 * 64 * 64 * 3 * 2)
    assert measured["busy_s"] > 0
    assert measured["size_bytes"] > 3 * 64
    assert worker.meter.take().keys() == {"wall_s"}


def test_a_step_that_breaks_costs_its_jobs_an_attempt_and_no_more(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, broken = family.predict, iter([True])

    def predict_after_breaking(*told: Any) -> torch.Tensor:
        if next(broken, False):
            raise RuntimeError("boom")
        return predict(*told)

    monkeypatch.setattr(family, "predict", predict_after_breaking)
    batch = submit(farm, 2)
    with renderer(farm, family) as worker:
        while not batch.status().complete:
            worker.render_all()
    assert [(job.state, job.attempts, job.error) for job in batch.jobs()] == [("done", 2, None)] * 2


def test_a_step_that_always_breaks_fails_its_jobs_and_ends(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_always(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("boom")

    monkeypatch.setattr(family, "predict", break_always)
    batch = submit(farm, 1)
    with renderer(farm, family) as worker:
        while not batch.status().complete:
            worker.render_all()
    [job] = batch.jobs()
    assert job.error is not None
    assert (job.state, job.attempts, job.error["code"]) == ("failed", 3, "render")
    assert "boom" in job.error["message"]


def test_a_job_that_cannot_be_rendered_fails_alone_with_its_reason(farm: Farm, family: Family) -> None:
    rows = [{"prompt": "good", **SMALL}, {"prompt": "bad", **SMALL, "scheduler_options": {"no_such_option": 1}}]
    batch = farm.submit(rows, batch="b")
    with renderer(farm, family) as worker:
        worker.render_all()
    good, bad = batch.jobs()
    assert good.state == "done"
    assert bad.error is not None
    assert (bad.state, bad.error["code"]) == ("failed", "scheduler")
    assert "no_such_option" in bad.error["message"]
    assert batch.status().complete


def test_a_text_that_lost_its_end_is_told_and_one_that_is_encoded_whole_is_not(farm: Farm, family: Family) -> None:
    long = "a long (and:1.3) winding road, " * 9
    cut: list[dict[str, Any]] = [{"prompt": long}, {"prompt": "road", "negative_prompt": long}]
    whole = [{**row, "prompt_syntax": "a1111", "clip_skip": 1} for row in cut]
    batch = farm.submit([{**row, **SMALL} for row in (*cut, *whole, {"prompt": "a", "clip_skip": 2})], batch="b")
    with renderer(farm, family) as worker:
        worker.render_all()
    lines = list(batch.results())
    told = [(line.get("prompt_truncated"), line.get("negative_prompt_truncated")) for line in lines]
    assert told == [(True, None), (False, True), (False, None), (False, None), (None, None)]
    asked = [(line["request"].get("prompt_syntax"), line["request"].get("clip_skip")) for line in lines]
    assert asked == [(None, None), (None, None), ("a1111", 1), ("a1111", 1), (None, 2)]
    assert lines[4]["error"]["code"] == "clip_skip"
    assert (batch.status().truncated, batch.status().done) == (2, 4)


def test_the_same_job_gives_the_same_file_alone_and_in_company(farm: Farm, family: Family) -> None:
    batch = submit(farm, 6)
    with renderer(farm, family) as worker:
        worker.render_all()
    receipts = list(batch.results())
    first = [farm.bucket.get(line["key"]) for line in receipts]
    assert {"plan", "model_digest", "device", "dtype", "slots"} <= receipts[0].keys()
    farm.ledger.redis.flushall()
    farm.ledger.create_batch("b", digest="again", model="mini")
    farm.ledger.append_jobs("b", before=0, total=6, parts_digest="c", closed=True)
    farm.ledger.redis.hset("lf:batch:b", "cursor", 5)
    with renderer(farm, family) as worker:
        assert worker.render_all() == 1
    [again] = (line for line in farm.batch("b").results() if line["state"] == "done")
    assert again["key"] != receipts[5]["key"]
    assert farm.bucket.get(again["key"]) == first[5]


def test_xl_and_turbo_pictures_go_the_same_way_and_are_what_the_pipeline_makes_of_their_receipts(
    farm: Farm, tmp_path: Path
) -> None:
    folder = make_tiny(tmp_path / "xl", kind="sdxl")
    turbo = {"scheduler": "euler_a", "scheduler_options": {"timestep_spacing": "trailing"}, "guidance_scale": 0.0}
    rows = [
        {"prompt": "plain", **SMALL},
        {"prompt": "told what not to show", "negative_prompt": "blurry", **SMALL, "width": 96},
        {"prompt": "in one step", **SMALL, **turbo, "num_inference_steps": 1},
    ]
    batch = farm.submit(rows, batch="b")
    with renderer(farm, load_family(folder, dtype=torch.float32, device=torch.device("cpu"))) as worker:
        assert worker.render_all() == 3
    receipts = list(batch.results())
    assert [line["state"] for line in receipts] == ["done"] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        for line in receipts:
            asked = dict(line["request"])
            scheduler, options = asked.pop("scheduler"), asked.pop("scheduler_options")
            kind = getattr(diffusers, resolve(scheduler).class_name)
            pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
            generator = torch.Generator("cpu").manual_seed(asked.pop("seed"))
            asked["negative_prompt"] = asked["negative_prompt"] or None
            wanted = np.asarray(pipe(**asked, generator=generator).images[0]).astype(int)
            with Image.open(io.BytesIO(farm.bucket.get(line["key"]))) as image:
                assert np.abs(np.asarray(image).astype(int) - wanted).max() <= 1, line["request"]
