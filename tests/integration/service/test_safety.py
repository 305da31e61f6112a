"""Unsafe images: scores in results, or jobs that fail, by a real Redis and a real S3 server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import empty
from tests.support.pipelines import render
from tests.support.rendering import SMALL, images, render_loop
from tests.support.tiny.safety import write_checker

from latentfarm import Farm, ModelError
from latentfarm.edit_fields import Safety
from latentfarm.job import Job
from latentfarm.storage.keys import batch_prefix
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import Family
from latentfarm_worker.safety.checker import SafetyChecker
from latentfarm_worker.safety.gate import SafetyGate, open_gate

pytestmark = pytest.mark.integration

COUNT = 8


@pytest.fixture(scope="module")
def rendered(family: Family) -> dict[int, torch.Tensor]:
    """The pixels of the jobs by index."""
    jobs = [Job(batch="b", index=n, prompt=f"p{n}", seed=n, guidance_scale=7.5, **SMALL) for n in range(COUNT)]
    return {index: image.pixels for index, image in render(Engine(family, slots=2), jobs).items()}


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory, rendered: dict[int, torch.Tensor]) -> Path:
    """The folder of a checker that flags some of the images."""
    folder = write_checker(tmp_path_factory.mktemp("safety"), list(rendered.values()), share=0.8)
    return folder / "safety_checker"


def render_batch(farm: Farm, family: Family, gate: SafetyGate, safety: Safety, **fields: Any) -> list[dict[str, Any]]:
    """Render the jobs with a value of safety; return the results."""
    rows = [{"prompt": f"p{n}", "seed": n, "guidance_scale": 7.5, **SMALL, **fields} for n in range(COUNT)]
    batch = farm.submit(rows, batch="b", safety=safety)
    with render_loop(farm, family, safety=gate) as loop:
        loop.render_all()
        batch.wait(timeout_s=60)
    return list(batch.results())


def test_scores_are_in_the_results_and_files_are_the_same(
    farm: Farm, family: Family, checker: Path, rendered: dict[int, torch.Tensor]
) -> None:
    gate = SafetyGate(checker)
    lines = render_batch(farm, family, gate, "score")
    scored = SafetyChecker.load(checker)
    wanted = [scored.scores(rendered[index]).as_receipt() for index in range(COUNT)]
    assert [line["safety"] for line in lines] == wanted
    assert {entry["flagged"] for entry in wanted} == {True, False}
    digests = [line["sha256"] for line in lines]
    empty(farm)
    without = render_batch(farm, family, gate, "off")
    assert [line["sha256"] for line in without] == digests
    assert all("safety" not in line for line in without)


@pytest.mark.parametrize(("wanted", "minimum"), [("refuse", "off"), ("off", "refuse")])
def test_an_unsafe_image_is_not_stored_and_its_job_fails(
    farm: Farm, family: Family, checker: Path, rendered: dict[int, torch.Tensor], wanted: Safety, minimum: Safety
) -> None:
    scored = SafetyChecker.load(checker)
    unsafe = {index for index, image in rendered.items() if scored.scores(image).found}
    gate = SafetyGate(checker, minimum)
    lines = render_batch(farm, family, gate, wanted, partial_images=2, save_intermediates=True)
    errors = {index: line["error"] for index, line in enumerate(lines) if "error" in line}
    assert {*errors} == unsafe
    assert {error["code"] for error in errors.values()} == {"unsafe"}
    assert len(images(farm)) == COUNT - len(unsafe)
    # they would be of unsafe images, too
    assert not list(farm.bucket.keys(f"{batch_prefix('b')}previews/"))


def test_without_a_checker_a_job_that_wants_one_fails_and_others_do_not(farm: Farm, family: Family) -> None:
    rows = [{"prompt": "a", **SMALL}, {"prompt": "b", "safety": "score", **SMALL}]
    batch = farm.submit(rows, batch="b")
    with render_loop(farm, family) as loop:
        loop.render_all()
        batch.wait(timeout_s=60)
    found = list(batch.results())
    assert found[0]["sha256"]
    assert found[1]["error"]["code"] == "safety_unavailable"


def test_a_worker_that_must_check_does_not_start_without_a_checker(checker: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"LATENTFARM_SAFETY is score, and .* has no safety checker; name one with"):
        open_gate("score", "", model=str(tmp_path))
    assert open_gate("score", str(checker), model=str(tmp_path)).available
    # the model's own is enough
    assert open_gate("refuse", "", model=str(checker.parent)).available
    assert not open_gate("off", "", model=str(tmp_path)).available
