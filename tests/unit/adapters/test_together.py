"""One row with a LoRA, a ControlNet and an image prompt, and nets on images and masks, against diffusers' pipelines."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.engines import make, pixels, run
from tests.support.input_images import Inputs, paint, paint_mask
from tests.support.loras import ATTENTION, changes, write_peft
from tests.support.pipelines import open_pipeline, render
from tests.support.tiny import NATIVE, make_tiny
from tests.support.tiny.controlnets import make_controlnet
from tests.support.tiny.ip_adapters import make_image_encoder, make_ip_adapter

from latentfarm.job import Job
from latentfarm_worker.adapters.catalogue import open_catalogue
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel
CONTROL, START, PROMPT = paint(1), paint(2), paint(3, 96, 64)
SIZE = {"width": NATIVE, "height": NATIVE, "guidance_scale": 4.0, "num_inference_steps": 4}


class Setup(NamedTuple):
    """A model with an adapter of each kind, its folder, and input images."""

    family: Any
    root: Path
    inputs: Inputs
    jobs: dict[str, Job]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    root = tmp_path_factory.mktemp("together")
    folder = make_tiny(root / "model")
    family: Any = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
    make_controlnet(root / "net", folder, seed=1)
    make_ip_adapter(root / "ip" / "look.safetensors", folder)
    make_image_encoder(root / "ip" / "image_encoder")
    write_peft(root / "style.safetensors", changes(family, rank=4, seed=1, ends=ATTENTION, text=False))
    named = f"lines={root}/net,look={root}/ip/look.safetensors,style={root}/style.safetensors"
    family.use_catalogue(open_catalogue(named, cache=root / "cache", max_bytes=0, open_store=_no_store))
    inputs = Inputs()
    control = {"controlnet": "lines", "control_image": inputs.add(CONTROL), "controlnet_conditioning_scale": 0.8}
    prompt = {"ip_adapter": "look", "ip_adapter_image": inputs.add(PROMPT), "ip_adapter_scale": 0.6}
    start = {"image": inputs.add(START), "strength": 0.7}
    jobs = {
        "all three": make(0, loras="style:0.7", **control, **prompt, **SIZE),
        "on an image": make(1, **control, **start, **SIZE, control_guidance_end=0.5),
        "text": make(2, **SIZE),
        "on a mask": make(3, **control, **start, mask_image=inputs.add(paint_mask()), **SIZE),
    }
    return Setup(family, root, inputs, jobs)


def _no_store(bucket: str) -> Any:
    raise AssertionError(bucket)


def by_pipeline(setup: Setup, name: str) -> np.ndarray[Any, Any]:
    """Return the image of a job, int (H, W, 3)."""
    job, base = setup.jobs[name], open_pipeline(setup.root / "model")
    arguments: dict[str, Any] = {}
    kind = diffusers.StableDiffusionPipeline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if job.controls:
            net = diffusers.ControlNetModel.from_pretrained(setup.root / "net", low_cpu_mem_usage=False)
            kind = diffusers.StableDiffusionControlNetPipeline
            arguments = {"image": CONTROL, "controlnet_conditioning_scale": 0.8}
            arguments["control_guidance_end"] = job.controls[0].end
            if job.image is not None:
                kind = diffusers.StableDiffusionControlNetImg2ImgPipeline
                arguments |= {"control_image": CONTROL, "image": START, "strength": 0.7}
            if job.mask_image is not None:
                kind = diffusers.StableDiffusionControlNetInpaintPipeline
                arguments["mask_image"] = paint_mask()
            base = kind(**base.components, controlnet=net, requires_safety_checker=False)
        for each in job.loras:
            fuse(base.unet, changes(setup.family, rank=4, seed=1, ends=ATTENTION, text=False), each.scale)
        if job.image_prompts:
            base.load_ip_adapter(str(setup.root / "ip"), subfolder="", weight_name="look.safetensors")
            base.set_ip_adapter_scale(job.image_prompts[0].scale)
            arguments["ip_adapter_image"] = PROMPT
        base.set_progress_bar_config(disable=True)
        image: Image.Image = base(
            job.prompt,
            width=NATIVE,
            height=NATIVE,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(job.seed)],
            **arguments,
        ).images[0]
    return np.asarray(image).astype(int)


def fuse(unet: Any, found: dict[str, tuple[torch.Tensor, torch.Tensor]], scale: float) -> None:
    for name, (down, up) in found.items():
        unet.get_submodule(name.removeprefix("unet.")).weight.data += scale * up @ down


def test_adapters_of_all_kinds_in_one_row_and_nets_on_images_give_the_pipelines_images(setup: Setup) -> None:
    engine = Engine(setup.family, slots=3)
    prepared = {name: setup.inputs.prepare(setup.family, job) for name, job in setup.jobs.items()}
    done = render(engine, [*prepared.values()])
    found = {}
    for name, job in setup.jobs.items():
        expected = by_pipeline(setup, name)
        assert expected.std() > 20, "a blank image would prove nothing"
        found[name] = int(np.abs(expected - done[job.index].decoded.numpy()).max())
    assert max(found.values()) <= BOUND, found


def test_a_row_with_all_adapters_has_the_same_bytes_alone(setup: Setup) -> None:
    together = Engine(setup.family, slots=3)
    done = render(together, [setup.inputs.prepare(setup.family, job) for job in reversed(setup.jobs.values())])
    for job in setup.jobs.values():
        alone = Engine(setup.family, slots=3)
        alone.admit(setup.inputs.prepare(setup.family, job))
        assert pixels(run(alone)[job.index]) == pixels(done[job.index]), job


def test_a_second_stage_has_its_nets_too(setup: Setup) -> None:
    engine = Engine(setup.family, slots=2)
    wanted = setup.jobs["all three"].model_copy(update={"hires_scale": 1.5, "index": 9})
    without = wanted.model_copy(update={"controlnet": None, "control_image": None, "index": 8})
    done = render(engine, [setup.inputs.prepare(setup.family, each) for each in (wanted, without)])
    assert done[9].pixels.shape == (96, 96, 3)
    assert (done[9].pixels.int() - done[8].pixels.int()).abs().max() > BOUND
    # no image holds an adapter any more
    assert all(not each.users for each in setup.family.adapter_modules._modules.values())
