"""Jobs with different LoRAs, mixed in one engine, give the images of diffusers' pipelines with peft's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import make, run
from tests.support.loras import ATTENTION, CONVOLUTIONS, LINEAR, catalogue_of, changes, write_kohya, write_peft
from tests.support.peft_pipeline import WithLoras, by_peft
from tests.support.pipelines import difference
from tests.support.tiny import NATIVE, Kind, make_tiny

from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel
KINDS: tuple[Kind, ...] = ("sd1", "sdxl", "sd3", "flux", "zimage")
SIZE = {"width": NATIVE, "height": NATIVE}
#: two LoRAs, one of them, none; with and without guidance
JOBS = [
    make(0, loras="styled:0.8", **SIZE),
    make(1, **SIZE),
    make(2, loras="kohya:1.2,styled:-0.5", guidance_scale=1.0, **SIZE),
    make(3, loras="wide:0.6", num_inference_steps=2, negative_prompt="blurry", **SIZE),
    make(4, loras="styled:0.3,wide:0.4,kohya:0.7", **SIZE),
    make(5, loras="kohya", num_inference_steps=4, **SIZE),
    make(6, loras="styled:0.9@0.5,wide:0.6,kohya:1.1@0.75", num_inference_steps=4, **SIZE),
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


def render_mixed(family: Any) -> dict[int, Any]:
    """Return the outcome of each job, all of them in one engine, and under -1 of the first without its LoRA."""
    engine = Engine(family, slots=4)
    for job in JOBS:
        engine.admit(job)
    outcomes: dict[int, Any] = dict(run(engine))
    plain = Engine(family, slots=4)
    plain.admit(JOBS[0].model_copy(update={"loras": ()}))
    return outcomes | {-1: run(plain)[0]}


def test_mixed_jobs_give_the_pipelines_images_in_each_family(tmp_path: Path) -> None:
    rendered, models = [], []
    for kind in KINDS:
        folder = tmp_path / kind
        (folder / "loras").mkdir(parents=True)
        model = make_tiny(folder / "model", kind=kind)
        family = load_family(model, dtype=torch.float32, device=torch.device("cpu"))
        models.append(WithLoras(model, write_loras(family, folder / "loras"), folder))
        family.use_catalogue(catalogue_of(folder / "loras", folder / "cache"))
        rendered.append(render_mixed(family))

    for kind, found, expected in zip(KINDS, rendered, by_peft(models, JOBS), strict=True):
        assert all(isinstance(outcome, Rendered) for outcome in found.values()), (kind, found)
        differences = {job.index: difference(expected[job.index], found[job.index]) for job in JOBS}
        assert max(differences.values()) <= BOUND, (kind, differences)
        assert difference(expected[0], found[-1]) > 2 * BOUND, f"{kind}: the LoRA changes the image"
