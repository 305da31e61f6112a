"""A compiled model gives the images of an uncompiled one, the same bytes in any company, and starts warm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import make, run
from tests.support.tiny import Kind, make_tiny
from torch._dynamo.utils import counters

from latentfarm.job import Job
from latentfarm.settings import Settings
from latentfarm_worker.compilation import compile_or_run_eagerly
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models import load_family

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no C++ compiler"),
]

SLOTS = 2
JOB = make(0, scheduler="euler", num_inference_steps=4)
LONG = make(1, scheduler="euler", prompt="a cat and a dog " * 10, prompt_syntax="a1111")
LARGER = make(2, scheduler="euler", width=96)
UNGUIDED = [make(index, scheduler="euler", guidance_scale=1.0) for index in range(3, 8)]


def render(family: Any, *jobs: Job) -> dict[int, torch.Tensor]:
    engine, done = Engine(family, slots=SLOTS), {}
    for job in jobs:
        engine.admit(job)
    for index, outcome in run(engine).items():
        assert isinstance(outcome, Rendered), outcome
        done[index] = outcome.pixels
    return done


def render_as_a_new_worker(model: Path, cache: Path) -> dict[str, Any]:
    """Compile a model and render with it; return the worst differences of pixels, and what Inductor did."""
    torch.set_num_threads(1)
    family = load_family(model, dtype=torch.float32, device=torch.device("cpu"))
    plain = render(family, JOB, LONG, LARGER)
    compile_or_run_eagerly(family, Settings(cache_dir=cache, micro_batch=2 * SLOTS))
    alone = render(family, JOB)
    # with those of the latents' update
    warm = int(counters["stats"]["unique_graphs"])
    together = render(family, *UNGUIDED, JOB, LONG, LARGER)
    return {
        "compiled": family.compiled,
        "differences": [int((plain[at].int() - together[at].int()).abs().max()) for at in (0, 1)],
        "same alone": torch.equal(alone[0], together[0]),
        "another size is uncompiled": torch.equal(plain[2], together[2]),
        "graphs after the first image": int(counters["stats"]["unique_graphs"]) - warm,
        "graphs": warm,
        "compiled graphs": int(counters["inductor"]["fxgraph_cache_miss"]),
    }


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_compiled_model_has_an_uncompiled_ones_images_and_a_second_worker_compiles_nothing(
    kind: Kind, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.unit.engine.test_compile", str(make_tiny(tmp_path / "tiny", kind=kind)),
               str(tmp_path / "cache")]  # fmt: skip
    first, second = (
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(2)
    )
    assert first.pop("compiled graphs") >= first["graphs"] >= 10
    assert second.pop("compiled graphs") == 0
    assert max(first.pop("differences")) <= 1
    assert max(second.pop("differences")) <= 1
    assert first == second
    assert (first["compiled"], first["same alone"], first["another size is uncompiled"]) == (True, True, True)
    assert first["graphs after the first image"] == 0


if __name__ == "__main__":
    sys.stdout.write(json.dumps(render_as_a_new_worker(Path(sys.argv[1]), Path(sys.argv[2]))))
