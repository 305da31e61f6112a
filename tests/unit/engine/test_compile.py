"""A compiled model gives the images of an uncompiled one, and the same bytes in any company. Needs a C compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny import make_tiny

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models import load_family

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    # Inductor imports a deprecated module of torch
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]

SLOTS = 2


@pytest.fixture(params=["sd1", "sdxl"])
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return load_family(
        make_tiny(tmp_path / "tiny", kind=request.param), dtype=torch.float32, device=torch.device("cpu")
    )


def render(family: Any, *jobs: Job) -> dict[int, torch.Tensor]:
    engine, done = Engine(family, slots=SLOTS), {}
    for job in jobs:
        engine.admit(job)
    while engine.busy:
        for outcome in engine.step():
            assert isinstance(outcome, Rendered), outcome
            done[outcome.job.index] = outcome.pixels
    return done


@pytest.mark.timeout(900)
def test_a_compiled_models_images_are_the_uncompiled_ones_and_have_the_same_bytes_in_any_company(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    job = Job(batch="b", index=0, prompt="a cat", seed=3, num_inference_steps=4, scheduler="euler")
    others = [job.model_copy(update={"index": n, "seed": n, "guidance_scale": 1.0}) for n in range(1, 6)]
    larger = job.model_copy(update={"index": 9, "width": 96})
    plain = render(family, job, larger)
    family.compile([1, 2 * SLOTS])
    compiled = render(family, job)
    assert (plain[0].int() - compiled[0].int()).abs().max() <= 1
    again = render(family, *others, job, larger)
    assert torch.equal(again[0], compiled[0])
    assert torch.equal(again[9], plain[9]), "another shape runs uncompiled"
    assert any((tmp_path / "inductor").rglob("*.so")), "compiled files are cached"
