"""Scores in results, by a real Redis and a real S3 server; a failing scorer fails no image."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from tests.conftest import empty
from tests.support.rendering import SMALL, render_loop

from latentfarm import Farm
from latentfarm.batch_drafts import DraftSelection
from latentfarm_worker.models import Family
from latentfarm_worker.scoring.measures import contrast, phash, sharpness
from latentfarm_worker.scoring.scorers import Scorers

pytestmark = pytest.mark.integration


def fails(text: str, _: Image.Image) -> float:
    raise RuntimeError(text)


def test_scores_are_in_results_beside_bytes_that_do_not_depend_on_them(farm: Farm, family: Family) -> None:
    scorers = Scorers({"width": lambda text, image: image.width + len(text), "fails": fails})
    rows = [
        {"prompt": "one", "seed": 1, "scorers": ["sharpness", "phash", "width", "fails"], **SMALL},
        {"prompt": "two", "seed": 2, **SMALL},
        {"prompt": "three", "seed": 3, "scorers": ["absent"], **SMALL},
    ]
    batch = farm.submit(rows, batch="b")
    with render_loop(farm, family, scorers=scorers) as loop:
        loop.render_all()
        batch.wait(timeout_s=60)
    first, second, third = batch.results()
    with Image.open(io.BytesIO(farm.bucket.get(first["key"]))) as image:
        rendered = image.convert("RGB")
        embedded = json.loads(image.info["latentfarm"])
    measured = {"sharpness": sharpness(rendered), "phash": phash(rendered)}
    assert first["scores"] == {**measured, "width": 67.0, "fails": None}
    assert "scores" not in second
    assert third["error"]["code"] == "scorer_unknown"
    # neither in the file nor in the request, so bytes are the same
    assert "scores" not in embedded
    assert "scorers" not in first["request"]

    empty(farm)
    bare = [{name: value for name, value in row.items() if name != "scorers"} for row in rows]
    batch = farm.submit(bare, batch="b", scorers=["contrast"])
    with render_loop(farm, family) as loop:
        loop.render_all()
        batch.wait(timeout_s=60)
    again = list(batch.results())
    assert [line["sha256"] for line in again[:2]] == [first["sha256"], second["sha256"]]
    assert again[0]["scores"] == {"contrast": contrast(rendered)}


def test_a_draft_has_scores_of_its_preview_and_its_finished_image_only_those_named(farm: Farm, family: Family) -> None:
    scorers = Scorers({"width": lambda _text, image: image.width})
    rows = [{"prompt": f"p{seed}", "seed": seed, **SMALL} for seed in range(3)]
    batch = farm.submit(rows, batch="b", draft=0.5, scorers=["width"])
    with render_loop(farm, family, scorers=scorers) as loop:
        loop.render_all()
        batch.wait(timeout_s=60)
        drafts = list(batch.results())
        batch.finish(DraftSelection(top=1, by="sharpness"))
        loop.render_all()
        loop.wait_for_uploads(60)
    for line in drafts:
        with Image.open(io.BytesIO(farm.bucket.get(line["key"]))) as image:
            preview = image.convert("RGB")
        measured = {"sharpness": sharpness(preview), "contrast": contrast(preview), "phash": phash(preview)}
        assert line["scores"] == {**measured, "width": 64.0}
    best = max(range(3), key=lambda index: drafts[index]["scores"]["sharpness"])
    after = list(batch.results())
    assert [line["state"] for line in after] == ["done" if index == best else "drafted" for index in range(3)]
    assert after[best]["scores"] == {"width": 64.0}
