"""Rows of a sweep that begin alike: their steps are made once, and their files are those of rows that share nothing."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tests.conftest import empty
from tests.support.exact import ExactFamily
from tests.support.rendering import render_loop

from latentfarm import Farm
from latentfarm.submission.estimate import make_estimate
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.request import make_request
from latentfarm_worker.models import Family

pytestmark = pytest.mark.integration

ROWS: list[Any] = [{"prompt": f"{number}", "seed": number, "width": 64, "height": 64} for number in range(3)]
OPTIONS: dict[str, Any] = {
    "num_inference_steps": 10,
    "scheduler": "dpm++2m-sde",
    "guidance_scale": 5.0,
    "expansion": Expansion.parse(["guidance_interval=0..0.3,0..0.6,0..0.9"]),
}


def render(farm: Farm, *, shares: bool) -> tuple[dict[int, str], int, float]:
    """Return the digests of the files, the evaluations that the receipts report as shared, and those of the metric."""
    batch = farm.submit(ROWS, batch="b", **OPTIONS)
    with render_loop(farm, cast("Family", ExactFamily())) as loop:
        loop._engine.shares_beginnings = shares
        loop.render_all()
        assert batch.wait(timeout_s=60).done == 9
    lines = [*batch.results()]
    shared = sum(line.get("forked", {"evaluations": 0})["evaluations"] for line in lines)
    counted = loop.metrics.instruments.evaluations.labels("mini", "shared")._value.get()
    return {line["index"]: line["sha256"] for line in lines}, shared, counted


def test_a_sweep_makes_the_steps_that_its_estimate_counts(farm: Farm) -> None:
    request = make_request(ROWS, model="mini", **OPTIONS)
    estimate = make_estimate(request, throughput=None, count_tokens=None)
    files, shared, counted = render(farm, shares=True)
    assert shared == counted == estimate.shared_steps == 3 * (3 + 6)
    empty(farm)
    alone, shared, counted = render(farm, shares=False)
    assert shared == counted == 0
    assert alone == files, "also the receipts within the files are the same"
