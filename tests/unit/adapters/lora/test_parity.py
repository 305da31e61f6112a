"""Jobs with different LoRAs, mixed in one engine, give the images of diffusers' pipelines with peft's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import make, run
from tests.support.loras import ATTENTION, CONVOLUTIONS, LINEAR, catalogue_of, changes, write_kohya, write_peft
from tests.support.peft_pipeline import by_peft
from tests.support.pipelines import difference
from tests.support.tiny import NATIVE, Kind, make_tiny

from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel
SIZE = {"width": NATIVE, "height": NATIVE}
#: two LoRAs, one of them, none; with and without guidance
JOBS = [
    make(0, loras="styled:0.8", **SIZE),
    make(1, **SIZE),
    make(2, loras="kohya:1.2,styled:-0.5", guidance_scale=1.0, **SIZE),
    make(3, loras="wide:0.6", num_inference_steps=2, negative_prompt="blurry", **SIZE),
    make(4, loras="styled:0.3,wide:0.4,kohya:0.7", **SIZE),
    make(5, loras="kohya", num_inference_steps=4, **SIZE),
]


def write_loras(family: Any, folder: Path) -> dict[str, Path]:
    """Write LoRAs of three ranks, in the forms that the model's trainers write."""
    styled = write_peft(folder / "styled.safetensors", changes(family, rank=4, seed=1, ends=LINEAR))
    kohya, wide = changes(family, rank=11, seed=2, ends=ATTENTION), changes(family, rank=20, seed=3, ends=CONVOLUTIONS)
    if family.denoiser[0] == "unet":
        second = write_kohya(folder / "kohya.safetensors", kohya, alpha=8.0)
    else:
        second = write_peft(folder / "kohya.safetensors", kohya)
    return {"styled": styled, "kohya": second, "wide": write_peft(folder / "wide.safetensors", wide)}


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3", "flux", "zimage"])
def test_mixed_jobs_give_the_pipelines_images(kind: Kind, tmp_path: Path) -> None:
    model = make_tiny(tmp_path / kind, kind=kind)
    family = load_family(model, dtype=torch.float32, device=torch.device("cpu"))
    (tmp_path / "loras").mkdir()
    files = write_loras(family, tmp_path / "loras")
    family.use_catalogue(catalogue_of(tmp_path / "loras", tmp_path / "cache"))
    engine = Engine(family, slots=4)
    for job in JOBS:
        engine.admit(job)
    done = run(engine)
    expected = by_peft(model, JOBS, files, tmp_path)

    found = {}
    for job in JOBS:
        outcome = done[job.index]
        assert isinstance(outcome, Rendered), outcome
        found[job.index] = difference(expected[job.index], outcome)
    assert max(found.values()) <= BOUND, found
    plain = Engine(family, slots=4)
    plain.admit(JOBS[0].model_copy(update={"loras": ()}))
    without = run(plain)[0]
    assert isinstance(without, Rendered)
    assert difference(expected[0], without) > 2 * BOUND, "the LoRA changes the image"
