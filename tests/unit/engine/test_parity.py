"""Jobs mixed in one engine give the images of the model's diffusers pipeline, one at a time."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tests.support.pipelines import (
    by_pipeline,
    call,
    config_of,
    difference,
    differences,
    open_pipeline,
    render,
    set_scheduler,
)
from tests.support.tiny import Kind, make_tiny

from latentfarm import schedulers
from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel
PRK = {"skip_prk_steps": True}  # without it PNDM begins with Runge-Kutta steps, for which there is no plan
NAMES = [None, *(name for name in schedulers.SOLVERS if not name.startswith("flow_")), "dpm++sde-karras", "euler-beta"]


def job(index: int, name: str | None, **fields: Any) -> Job:
    wanted: dict[str, Any] = {
        "scheduler_options": PRK if name == "pndm" else {},
        "prompt": f"a small painting, number {index}",
        "negative_prompt": "blurry" if index % 2 else "",
        "num_inference_steps": 3 + index % 2,
        "guidance_scale": (7.5, 1.0, 3.0)[index % 3],
        "seed": index,
    }
    return Job(batch="b", index=index, scheduler=name, **{**wanted, **fields})


def worst(family: Any, pipe: Any, own_config: Any, jobs: list[Job], *, slots: int = 3) -> dict[Any, int]:
    """Return the largest differences to the pipeline of jobs in one run, by scheduler, steps and guidance."""
    found = differences(family, pipe, own_config, jobs, slots=slots)
    return {(each.scheduler, each.num_inference_steps, each.guidance_scale): found[each.index] for each in jobs}


@pytest.fixture
def own_config(pipeline: Any) -> Any:
    return config_of(pipeline)


def test_every_scheduler_mixed_in_one_run_gives_the_pipelines_image(
    model: Path, family: Any, pipeline: Any, own_config: Any
) -> None:
    # a plan does not depend on the family; the others prove that their predictions and conditioning fit it
    names = NAMES if model.name == "sd1" else [None, "ddim", "dpm++2m", "euler", "euler_a", "heun", "unipc"]
    found = worst(family, pipeline, own_config, [job(index, name) for index, name in enumerate(names)])
    assert len(found) == len(names)
    assert max(found.values()) <= BOUND, found


def test_another_seed_scheduler_prompt_or_guidance_gives_another_image(
    family: Any, pipeline: Any, own_config: Any
) -> None:
    image = by_pipeline(pipeline, own_config, job(0, "euler"))
    others = [
        job(0, "euler", seed=99),
        job(0, "euler_a"),
        job(0, "euler", prompt="x"),
        job(0, "euler", guidance_scale=5),
    ]
    for other in others:
        pixels = render(Engine(family, slots=1), [other])[0].pixels.numpy()
        assert np.abs(image - pixels).max() > BOUND + 2, other


def test_clip_skip_is_the_pipelines_and_leaves_the_negative_prompt_alone(
    family: Any, pipeline: Any, own_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # diffusers' pipeline of SD 1 needs a module that transformers 5 has removed
    monkeypatch.setattr(type(pipeline.text_encoder), "text_model", property(lambda model: model), raising=False)
    wanted = job(0, "euler", clip_skip=1, negative_prompt="a blurry photo", guidance_scale=7.5)
    done = render(Engine(family, slots=1), [wanted])[0]
    set_scheduler(pipeline, own_config, wanted)
    assert difference(call(pipeline, wanted, clip_skip=1), done) <= BOUND
    other = render(Engine(family, slots=1), [wanted.model_copy(update={"prompt_syntax": "a1111"})])[0]
    assert (other.pixels.int() - done.pixels.int()).abs().max() > BOUND, "the web UI skips them there too"


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.3, 1.0), (0.25, 0.75), (0.0, 0.01)])
def test_guidance_in_an_interval_of_the_steps_is_the_pipelines_with_guidance_switched(
    family: Any, pipeline: Any, own_config: Any, interval: tuple[float, float]
) -> None:
    wanted = job(0, "euler", num_inference_steps=8, guidance_interval=interval)
    engine = Engine(family, slots=1)
    engine.admit(wanted)
    free = []
    while not (outcomes := engine.step()):
        engine.check_integrity()
        free.append(engine._running.batch is not None and engine._running.batch.free_rows)
    [got] = outcomes
    assert isinstance(got, Rendered)
    image = by_switching_pipeline(pipeline, own_config, wanted)
    assert np.abs(image - got.pixels.numpy()).max() <= BOUND
    # the second row is free as soon as the interval ends
    assert free == [int(call >= interval[1] * 8) for call in range(1, 8)]


def by_switching_pipeline(pipe: Any, own_config: Any, wanted: Job) -> np.ndarray[Any, Any]:
    """Render with diffusers, switching guidance on and off at the end of the step before."""
    start, stop = wanted.guidance_interval or (0.0, 1.0)
    steps = wanted.num_inference_steps
    cpu = torch.device("cpu")
    positive, negative, *pooled = pipe.encode_prompt(
        wanted.prompt,
        device=cpu,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=wanted.negative_prompt or None,
    )
    with_and_without = {"prompt_embeds": (torch.cat([negative, positive]), positive)}
    if pooled:
        with_and_without["add_text_embeds"] = (torch.cat(pooled[::-1]), pooled[0])
        ids = torch.tensor([[pipe.default_sample_size * pipe.vae_scale_factor] * 2]).float()
        ids = torch.cat([ids, torch.zeros(1, 2), ids], dim=1)
        with_and_without["add_time_ids"] = (ids.repeat(2, 1), ids)

    def switch(pipe: Any, step: int, _timestep: Any, _tensors: Any) -> dict[str, torch.Tensor]:
        guided = start <= (step + 1) / steps < stop
        pipe._guidance_scale = wanted.guidance_scale if guided else 1.0
        return {name: tensors[not guided] for name, tensors in with_and_without.items()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(own_config)
        image = pipe(
            wanted.prompt,
            negative_prompt=wanted.negative_prompt or None,
            num_inference_steps=steps,
            guidance_scale=wanted.guidance_scale if start == 0 else 1.0,
            generator=torch.Generator("cpu").manual_seed(wanted.seed),
            callback_on_step_end=switch,
            callback_on_step_end_tensor_inputs=[*with_and_without],
        ).images[0]
    return np.asarray(image).astype(int)


def test_other_sizes_and_long_and_foreign_prompts(family: Any, pipeline: Any, own_config: Any) -> None:
    jobs = [
        job(0, "euler", width=96, height=64),
        job(1, "dpm++2m", width=64, height=128, prompt="wörter, 言葉, 🎨 " * 9),
        job(2, "unipc", prompt=""),
    ]
    done = render(Engine(family, slots=2), jobs)
    for wanted in jobs:
        image = by_pipeline(pipeline, own_config, wanted)
        result = done[wanted.index]
        assert (result.height, result.width) == image.shape[:2]
        assert np.abs(image - result.pixels.numpy()).max() <= BOUND, wanted
    assert [done[index].truncated for index in range(3)] == [(), ("prompt",), ()]


# -- few steps ---------------------------------------------------------------------------------------------------

STEPS = (1, 2, 4)
TRAILING = {"timestep_spacing": "trailing"}


def test_lcm_tcd_and_turbos_scheduler_give_the_pipelines_image_in_few_steps(
    family: Any, pipeline: Any, own_config: Any
) -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [("lcm", {}), ("tcd", {}), ("euler_a", TRAILING)]
    jobs = [
        job(
            index,
            name,
            scheduler_options=options,
            num_inference_steps=steps,
            guidance_scale=(0.0, 1.0, 1.5)[index % 3],
        )
        for index, (steps, (name, options)) in enumerate((steps, kind) for kind in kinds for steps in STEPS)
    ]
    found = worst(family, pipeline, own_config, jobs)
    assert len(found) == len(jobs)
    assert max(found.values()) <= BOUND, found


def load(folder: Path) -> Any:
    return load_family(folder, dtype=torch.float32, device=torch.device("cpu"))


def test_a_turbo_models_own_scheduler_gives_the_pipelines_image_without_guidance(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "turbo", kind="sdxl")
    path = folder / "scheduler" / "scheduler_config.json"
    own = {**json.loads(path.read_text()), **TRAILING, "_class_name": "EulerAncestralDiscreteScheduler"}
    path.write_text(json.dumps(own))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"][1] = own["_class_name"]
    (folder / "model_index.json").write_text(json.dumps(index))
    pipe = open_pipeline(folder)
    jobs = [job(steps, None, num_inference_steps=steps, guidance_scale=0.0) for steps in range(1, 5)]
    found = worst(load(folder), pipe, config_of(pipe), jobs, slots=2)
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_distilled_model_takes_one_row_an_image_and_its_own_guidance(tmp_path: Path, kind: Kind) -> None:
    folder = make_tiny(tmp_path / kind, kind=kind)
    config = json.loads((folder / "unet" / "config.json").read_text())
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 32}).save_pretrained(folder / "unet")
    pipe, family = open_pipeline(folder), load(folder)
    jobs = [
        job(index, "lcm", num_inference_steps=4, guidance_scale=scale, seed=7, prompt="one")
        for index, scale in enumerate((0.0, 1.0, 8.5))
    ]
    engine = Engine(family, slots=2)
    assert [len(engine.prepare(each).prompts) for each in jobs] == [1, 1, 1]
    found = worst(family, pipe, config_of(pipe), jobs, slots=2)
    assert max(found.values()) <= BOUND, found
    images = [each.pixels.int() for each in render(engine, jobs).values()]
    assert (images[0] - images[2]).abs().max() > BOUND + 2
