"""Jobs with a refiner, mixed with others, give the images of diffusers' two pipelines, called one after the other.

Their bytes do not depend on company and restarts.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.support.company import render_in_company
from tests.support.controlled import catalogue_of, noise_image, prepared
from tests.support.controlled import job as controlled
from tests.support.engines import Faulty, make, pixels, render_alone, run, run_isolating
from tests.support.loras import changes, write_peft
from tests.support.pipelines import (
    arguments_of,
    by_pipeline,
    config_of,
    difference,
    open_pipeline,
    render,
    set_scheduler,
)
from tests.support.refined import load, make_refinable, refined
from tests.support.tiny.controlnets import make_controlnet

from latentfarm.adapter_kind import AdapterKind
from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.images.receipt import ImageFileEncoder

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel


class Subject(NamedTuple):
    """A tiny model with refiners, the pipelines of both for `fine`, and the config of their scheduler."""

    folder: Path
    refiners: Path
    family: Any
    base: Any
    refiner: Any
    own_config: dict[str, Any]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    found = make_refinable(tmp_path_factory.mktemp("models"))
    base = open_pipeline(found.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refiner = diffusers.StableDiffusionXLImg2ImgPipeline(
            **{name: base.components[name] for name in ("vae", "text_encoder_2", "tokenizer_2", "scheduler")},
            text_encoder=None,
            tokenizer=None,
            unet=diffusers.UNet2DConditionModel.from_pretrained(found.refiners / "fine", low_cpu_mem_usage=False),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
        )
    refiner.set_progress_bar_config(disable=True)
    return Subject(*found, base, refiner, config_of(base))


def by_two_pipelines(subject: Subject, wanted: Job, *, base: Any = None, **follow: Any) -> np.ndarray[Any, Any]:
    """Return the image of a job by the base's pipeline and then the refiner's, with one generator."""
    common = {
        "prompt": wanted.prompt,
        "generator": torch.Generator("cpu").manual_seed(wanted.seed),
        "num_inference_steps": wanted.num_inference_steps,
        "clip_skip": wanted.clip_skip or None,
        **arguments_of(subject.base, wanted),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = subject.base if base is None else base
        set_scheduler(base, subject.own_config, wanted)
        latents = base(
            width=wanted.width,
            height=wanted.height,
            denoising_end=wanted.refiner_start,
            output_type="latent",
            **common,
            **follow,
        ).images
        set_scheduler(subject.refiner, subject.own_config, wanted)
        image = subject.refiner(image=latents, denoising_start=wanted.refiner_start, **common).images[0]
    return np.asarray(image).astype(int)


def test_refined_images_mixed_with_others_are_those_of_the_two_pipelines(subject: Subject) -> None:
    jobs = [
        refined(0),
        make(1, width=64, height=64),
        refined(2, negative_prompt="blurred", refiner_start=0.8, num_inference_steps=6),
        refined(3, width=96, refiner_start=0.3),
        make(4, width=96, height=64, guidance_scale=3.0),
        refined(5, clip_skip=1),
        refined(6, guidance_scale=1.0),
    ]
    done = render(Engine(subject.family, slots=3), jobs)
    found = {}
    for job in jobs:
        image = (
            by_pipeline(subject.base, subject.own_config, job)
            if job.refiner is None
            else by_two_pipelines(subject, job)
        )
        found[job.index] = difference(image, done[job.index])
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("start", [0.25, 0.6, 0.8])
def test_schedulers_begin_again_at_the_cut_with_the_same_generator(subject: Subject, start: float) -> None:
    names = ["euler_a", "dpm++2m", "dpm++2m-sde", "ddpm", "heun", "unipc", "pndm", "euler-karras"]
    jobs = [
        refined(at, name, refiner_start=start, num_inference_steps=6, guidance_scale=3.0)
        for at, name in enumerate(names)
    ]
    done = render(Engine(subject.family, slots=3), jobs)
    found = {job.scheduler: difference(by_two_pipelines(subject, job), done[job.index]) for job in jobs}
    assert max(found.values()) <= BOUND, found


def test_a_controlnet_is_on_for_a_share_of_all_steps(subject: Subject, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    net = make_controlnet(folder / "lines", subject.folder)
    (folder / "fine").symlink_to(subject.refiners / "fine")
    family = load(subject.folder)
    family.use_catalogue(catalogue_of(folder, tmp_path / "cache"))
    image = noise_image(1)
    job = controlled(
        0,
        "lines",
        images=[image],
        num_inference_steps=5,
        guidance_scale=3.0,
        scheduler="euler",
        control_guidance_end=0.6,
        refiner="fine",
        refiner_start=0.8,
    )
    engine = Engine(family, slots=2)
    done = render(engine, [prepared(engine, job, [image]), make(1, width=64, height=64)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = diffusers.StableDiffusionXLControlNetPipeline(
            **subject.base.components,
            controlnet=diffusers.ControlNetModel.from_pretrained(net, low_cpu_mem_usage=False),
        )
    base.set_progress_bar_config(disable=True)
    follow = {"image": Image.fromarray(image), "control_guidance_end": 0.6}
    assert difference(by_two_pipelines(subject, job, base=base, **follow), done[0]) <= BOUND
    assert [(each.name, each.kind) for each in done[0].adapters] == [
        ("lines", AdapterKind.CONTROLNET),
        ("fine", AdapterKind.REFINER),
    ]


def test_a_lora_changes_the_first_stage_and_the_texts_of_both(subject: Subject, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    family = load(subject.folder)
    write_peft(folder / "unet.safetensors", changes(family, rank=2, seed=1, text=False))
    write_peft(folder / "texts.safetensors", changes(family, rank=2, seed=2, ends=()))
    (folder / "fine").symlink_to(subject.refiners / "fine")
    family.use_catalogue(catalogue_of(folder, tmp_path / "cache"))
    kinds: list[frozenset[str]] = []

    def predict(latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Any) -> torch.Tensor:
        kinds.append(frozenset(name.partition(":")[0] for name in conditioning))
        return family.predict(latents, timesteps, conditioning)  # type: ignore[no-any-return]

    jobs = [refined(0, "euler", seed=0, loras=loras) for loras in ((), ("unet",), ("texts",))]
    done = []
    for job in jobs:
        engine = Engine(Faulty(family, predict=predict), slots=1)
        engine.admit(job)
        done.append(run(engine)[0])
    assert len({pixels(each) for each in done}) == len(jobs)
    assert isinstance(done[1], Rendered)
    assert [each.name for each in done[1].adapters] == ["unet", "fine"]
    assert not any("refiner" in names and any("lora" in name for name in names) for names in kinds)


# -- company, restarts -------------------------------------------------------------------------------------------

JOBS = [
    refined(0, "euler_a"),
    refined(0, "dpm++2m-sde", guidance_scale=1.0, width=96),
    refined(0, "heun", prompt="a long prompt, " * 30, refiner="other", refiner_start=0.3, num_inference_steps=4),
]


@settings(max_examples=5, deadline=None)
@given(which=st.integers(0, len(JOBS) - 1), seed=st.integers(0, 2**32), company=st.integers(1, 5))
def test_the_same_bytes_alone_and_in_any_company(subject: Subject, which: int, seed: int, company: int) -> None:
    found = render_in_company(subject.family, JOBS[which], seed=seed, company=company)
    assert found == render_alone(subject.family, JOBS[which])


def test_rows_of_the_model_and_of_each_refiner_share_no_call(subject: Subject) -> None:
    calls: list[set[str]] = []

    def predict(latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Any) -> torch.Tensor:
        calls.append({name for name in conditioning if name.startswith("refiner:")})
        return subject.family.predict(latents, timesteps, conditioning)  # type: ignore[no-any-return]

    jobs = [refined(at, "euler", seed=at, refiner=name) for at, name in enumerate(["fine", "other", "fine", "other"])]
    engine = Engine(Faulty(subject.family, predict=predict), slots=8)
    for job in jobs:
        engine.admit(job)
    done = run(engine)
    assert sorted({len(names) for names in calls}) == [0, 1]
    assert len(set().union(*calls)) == 2
    # all images in one call of the model, then in one of each refiner
    assert [len(names) for names in calls] == [0] * 3 + [1] * 2 * 2
    for job in jobs[:2]:
        alone = Engine(subject.family, slots=8)
        alone.admit(job)
        assert pixels(run(alone)[job.index]) == pixels(done[job.index])


@pytest.mark.parametrize("at", [2, 3, 4, 5])
def test_a_job_that_starts_again_in_either_stage_has_the_same_bytes(subject: Subject, at: int) -> None:
    stages: list[bool] = []

    def predict(latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Any) -> torch.Tensor:
        stages.append(any(name.startswith("refiner:") for name in conditioning))
        if len(stages) == at:
            raise RuntimeError("a call broke")
        return subject.family.predict(latents, timesteps, conditioning)  # type: ignore[no-any-return]

    jobs = [refined(index, "euler_a", guidance_scale=3.0) for index in range(2)]
    engine = Engine(Faulty(subject.family, predict=predict), slots=3)
    for each in jobs:
        engine.admit(each)
    done = run_isolating(engine)
    assert len(stages) > 5
    for job in jobs:
        alone = Engine(subject.family, slots=3)
        alone.admit(job)
        assert pixels(run(alone)[job.index]) == pixels(done[job.index])


def test_a_second_stage_that_breaks_is_repeated_alone(subject: Subject) -> None:
    stages: list[bool] = []

    def predict(latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Any) -> torch.Tensor:
        stages.append(any(name.startswith("refiner:") for name in conditioning))
        if stages.count(True) == 2 and stages[-1]:
            raise torch.OutOfMemoryError("out of memory")
        return subject.family.predict(latents, timesteps, conditioning)  # type: ignore[no-any-return]

    job = refined(0, "euler_a", save_intermediates=True)
    engine = Engine(Faulty(subject.family, predict=predict), slots=4)
    straight = Engine(subject.family, slots=4)
    for each in (engine, straight):
        each.admit(job)
    done, wanted = run(engine)[0], run(straight)[0]
    assert isinstance(done, Rendered)
    assert isinstance(wanted, Rendered)
    # three evaluations of the model, of the refiner one that broke and two that were made again
    assert stages == [False] * 3 + [True] * 2 + [True] * 2
    assert done.strip is not None
    assert wanted.strip is not None
    assert torch.equal(done.strip, wanted.strip)


# -- what others see ---------------------------------------------------------------------------------------------


def test_progress_counts_both_stages_and_a_cancelled_job_is_gone_in_each(subject: Subject) -> None:
    job = refined(0, "euler", hires_upscaler="pixel")
    for stop_after in range(1, 8):
        engine = Engine(subject.family, slots=1)
        engine.admit(engine.prepare(job, "handle", interactive=True))
        seen: list[int] = []
        for _ in range(stop_after):
            engine.step()
            seen += [done for _, done, steps in engine.interactive_progress() if steps == 5]
        assert seen == sorted(seen)
        if engine.busy:
            assert engine.cancel("handle")
            assert not engine.busy
            engine.check_integrity()
            assert engine.free == 1


def test_partial_images_and_intermediates_are_spread_over_the_run(subject: Subject) -> None:
    engine = Engine(subject.family, slots=1)
    engine.admit(refined(0, "euler", partial_images=2, save_intermediates=True))
    done: dict[int, Rendered | Failed] = {}
    previews = []
    while engine.busy:
        done |= {each.job.index: each for each in engine.step()}
        previews += engine.take_previews()
    assert [(each.number, each.step, each.steps) for each in previews] == [(0, 2, 5), (1, 3, 5)]
    image = done[0]
    assert isinstance(image, Rendered)
    # after each of the evaluations but the last, which is the image
    assert len(image.frames) == 4
    assert image.strip is not None
    assert image.strip.shape == (64, 5 * 64, 3)


def test_an_interval_of_guidance_is_a_share_of_all_steps(subject: Subject) -> None:
    rows: list[int] = []

    def predict(latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Any) -> torch.Tensor:
        rows.append(len(latents))
        return subject.family.predict(latents, timesteps, conditioning)  # type: ignore[no-any-return]

    family = Faulty(subject.family, predict=predict)
    for interval, wanted in {
        (0.0, 0.8): [2, 2, 2, 2, 1],
        (0.4, 1.0): [1, 1, 2, 2, 2],
        (0.0, 0.2): [2, 1, 1, 1, 1],
    }.items():
        rows.clear()
        engine = Engine(family, slots=1, deterministic=False)
        engine.admit(refined(0, "euler", guidance_interval=interval))
        assert isinstance(run(engine)[0], Rendered)
        assert rows == wanted


def test_a_receipt_has_both_plans_and_the_refiner(subject: Subject) -> None:
    engine = Engine(subject.family, slots=2)
    engine.admit(refined(0, "euler"))
    done = run(engine)[0]
    assert isinstance(done, Rendered)
    receipt = ImageFileEncoder(engine, model="m", embed_metadata=True).provenance(done)
    assert (receipt["request"]["refiner"], receipt["request"]["refiner_start"]) == ("fine", 0.6)
    assert "hires" not in receipt
    assert receipt["refinement"]["micro_batch"] == receipt["micro_batch"] == 4
    whole = engine.prepare(refined(1, "euler", refiner=None)).plan.digest
    assert len({receipt["refinement"]["plan"], receipt["plan"], whole}) == 3
    assert [each["name"] for each in receipt["adapters"]] == ["fine"]
    # a batch's default of its start changes nothing without a refiner
    assert "refiner_start" not in refined(1, refiner=None, refiner_start=0.8).request()
