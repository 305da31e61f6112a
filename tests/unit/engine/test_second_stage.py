"""Jobs with a second stage, mixed with others, give the images of diffusers' two pipelines, called one after the other.

Their bytes do not depend on company, restarts and the time at which the second stage begins.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from tests.support.input_images import Inputs, paint
from tests.support.pipelines import (
    arguments_of,
    by_pipeline,
    difference,
    render,
    set_scheduler,
)
from tests.support.subjects import Subject, open_subject, own_scheduler_after
from tests.support.tiny import make_tiny
from tests.support.tiny.controlnets import make_controlnet

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel
IMAGE_PIPELINES = {
    "StableDiffusionPipeline": diffusers.StableDiffusionImg2ImgPipeline,
    "StableDiffusionXLPipeline": diffusers.StableDiffusionXLImg2ImgPipeline,
    "StableDiffusion3Pipeline": diffusers.StableDiffusion3Img2ImgPipeline,
}


@pytest.fixture(scope="module", params=["sd1", "sdxl", "sd3"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return open_subject(make_tiny(tmp_path_factory.mktemp("models") / request.param, kind=request.param), request.param)


@pytest.fixture
def subject(loaded: Subject) -> Iterator[Subject]:
    with own_scheduler_after(loaded) as kept:
        yield kept


def load(folder: Path) -> Any:
    return load_family(folder, dtype=torch.float32, device=torch.device("cpu"))


def hires(index: int, scheduler: str | None = None, **fields: Any) -> Job:
    """Return a job with a second stage of 96 x 96 pixels."""
    defaults: dict[str, Any] = {"hires_scale": 1.5, "guidance_scale": (3.0, 1.0, 5.5)[index % 3]}
    return make(
        index, scheduler=scheduler, **{"width": 64, "height": 64, "num_inference_steps": 4, **defaults, **fields}
    )


def by_two_pipelines(subject: Subject, wanted: Job) -> np.ndarray[Any, Any]:
    """Return the image of a job by the pipeline for text and then that for images, with one generator."""
    assert wanted.hires_scale is not None
    assert wanted.width is not None
    assert wanted.height is not None
    pipe, generator = subject.pipe, torch.Generator("cpu").manual_seed(wanted.seed)
    width, height = (int(side * wanted.hires_scale) // 16 * 16 for side in (wanted.width, wanted.height))
    common = {"prompt": wanted.prompt, "generator": generator, **arguments_of(pipe, wanted)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_scheduler(pipe, subject.own_config, wanted)
        first = pipe(
            width=wanted.width,
            height=wanted.height,
            num_inference_steps=wanted.num_inference_steps,
            output_type="latent" if wanted.hires_upscaler == "latent" else "pil",
            **common,
        ).images
        if wanted.hires_upscaler == "latent":
            image = torch.nn.functional.interpolate(first, size=(height // 8, width // 8), mode="bilinear")
        else:
            image = first[0].resize((width, height), Image.Resampling.LANCZOS)
        again = IMAGE_PIPELINES[type(pipe).__name__].from_pipe(pipe)
        again.set_progress_bar_config(disable=True)
        set_scheduler(again, subject.own_config, wanted)
        size = {"width": width, "height": height} if subject.kind == "sd3" else {}
        result = again(
            image=image,
            strength=wanted.hires_strength,
            num_inference_steps=wanted.hires_steps or wanted.num_inference_steps,
            **size,
            **common,
        ).images[0]
    return np.asarray(result).astype(int)


def test_two_stages_mixed_with_text_alone_give_the_pipelines_images(subject: Subject) -> None:
    jobs = [
        hires(0),
        make(1),
        hires(2, hires_upscaler="pixel", hires_strength=0.6),
        hires(3, width=96, hires_steps=7, hires_strength=0.5),
        make(4, width=96, height=96, guidance_scale=3.0),
        hires(5, hires_upscaler="pixel", hires_steps=6, hires_strength=1.0),
    ]
    done = render(Engine(subject.family, slots=3), jobs)
    found = {}
    for job in jobs:
        image = (
            by_pipeline(subject.pipe, subject.own_config, job)
            if job.hires_scale is None
            else by_two_pipelines(subject, job)
        )
        found[job.index] = difference(image, done[job.index])
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("loaded", ["sd1"], indirect=True)
@pytest.mark.parametrize("upscaler", ["latent", "pixel"])
def test_schedulers_that_draw_noise_continue_with_the_same_generator(subject: Subject, upscaler: str) -> None:
    jobs = [
        hires(at, name, hires_upscaler=upscaler)
        for at, name in enumerate(["euler_a", "dpm++2m-sde", "ddpm", "heun", "unipc", "pndm"])
    ]
    done = render(Engine(subject.family, slots=3), jobs)
    found = {job.scheduler: difference(by_two_pipelines(subject, job), done[job.index]) for job in jobs}
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("loaded", ["sd1"], indirect=True)
def test_a_job_on_an_image_has_a_second_stage_too(subject: Subject) -> None:
    inputs = Inputs()
    original = paint(1)
    job = hires(0, "euler_a", image=inputs.add(original), strength=0.6, guidance_scale=3.0)
    done = render(Engine(subject.family, slots=2), [inputs.prepare(subject.family, job)])[0]
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(subject.pipe)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(job.seed)
    common = {"prompt": job.prompt, "generator": generator, "num_inference_steps": 4, **arguments_of(subject.pipe, job)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_scheduler(pipe, subject.own_config, job)
        first = pipe(image=original, strength=0.6, output_type="latent", **common).images
        enlarged = torch.nn.functional.interpolate(first, size=(12, 12), mode="bilinear")
        image = pipe(image=enlarged, strength=0.7, **common).images[0]
    assert difference(np.asarray(image).astype(int), done) <= BOUND


@pytest.mark.parametrize("loaded", ["sd1"], indirect=True)
def test_both_stages_follow_a_controlnet(subject: Subject, tmp_path: Path) -> None:
    folder = make_controlnet(tmp_path / "nets" / "lines", Path(subject.family.name)).parent
    family = load(Path(subject.family.name))
    family.use_catalogue(catalogue_of(folder, tmp_path / "cache"))
    image = noise_image(1)
    shared: dict[str, Any] = {"images": [image], "hires_scale": 1.5, "scheduler": "euler"}
    jobs = [
        controlled(0, "lines", **shared, control_guidance_end=0.0),
        controlled(1, "lines", **shared, seed=0),
        controlled(2, "lines", **shared, seed=0, control_preprocessor="canny"),
        # the edges of an image of the second size are others
        controlled(3, "lines", images=[image], seed=0, control_preprocessor="canny", width=96, height=96),
    ]
    enlarged = np.asarray(Image.fromarray(image).resize((96, 96)))
    images = [image, image, image, enlarged]
    engine = Engine(family, slots=3)
    done = render(engine, [prepared(engine, job, [each]) for job, each in zip(jobs, images, strict=True)])
    for job, each in zip(jobs, images, strict=True):
        alone = Engine(family, slots=3)
        alone.admit(prepared(alone, job, [each]))
        assert pixels(run(alone)[job.index]) == pixels(done[job.index])
    assert len({pixels(image) for image in done.values()}) == len(jobs)
    assert all(done[index].pixels.shape == (96, 96, 3) for index in range(4))


def test_a_mask_would_not_be_kept_by_a_second_stage() -> None:
    digest = "sha256:" + "0" * 64
    with pytest.raises(ValueError, match="hires_scale paints all of an image again, also what mask_image keeps"):
        hires(0, image=digest, mask_image=digest)


# -- company, restarts -------------------------------------------------------------------------------------------

JOBS = [
    hires(0, "euler_a"),
    hires(0, "euler", hires_upscaler="pixel", guidance_scale=3.0, width=96),
    hires(0, "dpm++2m", hires_steps=5, hires_strength=0.4),
]


@settings(max_examples=6, deadline=None)
@given(which=st.integers(0, len(JOBS) - 1), seed=st.integers(0, 2**32), company=st.integers(1, 6))
def test_the_same_bytes_alone_and_in_any_company(sd1: Any, which: int, seed: int, company: int) -> None:
    assert render_in_company(sd1, JOBS[which], seed=seed, company=company) == render_alone(sd1, JOBS[which])


def test_many_second_stages_run_together_and_their_number_changes_no_byte(sd1: Any) -> None:
    jobs = [hires(index, "euler_a", seed=index) for index in range(5)]
    done = render(Engine(sd1, slots=3), jobs)
    for job in jobs:
        engine = Engine(sd1, slots=3)
        engine.admit(job)
        assert pixels(run(engine)[job.index]) == pixels(done[job.index])


@pytest.mark.parametrize("at", [1, 3, 5, 7, 8])
def test_a_job_that_starts_again_in_either_stage_has_the_same_bytes(sd1: Any, at: int) -> None:
    sides: list[int] = []

    def predict(latents: torch.Tensor, *inputs: Any) -> torch.Tensor:
        sides.append(latents.shape[-1])
        if len(sides) == at:
            raise RuntimeError("a call broke")
        return sd1.predict(latents, *inputs)  # type: ignore[no-any-return]

    job = hires(0, "euler_a", hires_strength=1.0)
    engine = Engine(Faulty(sd1, predict=predict), slots=3)
    for each in (job, make(1, scheduler="euler")):
        engine.admit(each)
    done = run_isolating(engine)
    assert pixels(done[0]) == render_alone(sd1, job)
    assert len(sides) > 4 + 4
    if sides[at - 1] == 12:
        # the stage that broke is repeated, not the one before it
        assert 8 not in sides[at:]


def test_an_interactive_job_that_comes_between_the_stages_changes_no_byte(sd1: Any) -> None:
    job, engine = hires(0, "euler_a"), Engine(sd1, slots=1)
    engine.admit(job)
    done: dict[int, Rendered | Failed] = {}
    while not any(image.begun for image in engine._queue):
        engine.step()
    engine.admit(engine.prepare(make(1, width=96, height=64), interactive=True))
    order = []
    while engine.busy:
        for result in engine.step():
            done[result.job.index] = result
            order.append(result.job.index)
    assert order == [1, 0]
    engine.admit(job)
    assert pixels(done[0]) == pixels(run(engine)[0])


def test_memory_that_runs_out_in_the_second_stage_leaves_the_first(sd1: Any) -> None:
    sides: list[int] = []

    def predict(latents: torch.Tensor, *inputs: Any) -> torch.Tensor:
        sides.append(latents.shape[-1])
        if latents.shape[-1] == 12 and sides.count(12) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return sd1.predict(latents, *inputs)  # type: ignore[no-any-return]

    engine = Engine(Faulty(sd1, predict=predict), slots=4)
    job = hires(0, "euler")
    engine.admit(job)
    done = run(engine)
    assert isinstance(done[0], Rendered)
    assert done[0].pixels.shape == (96, 96, 3)
    assert sides.count(8) == 4


# -- what others see ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upscaler", ["latent", "pixel"])
def test_progress_counts_both_stages_and_a_cancelled_job_is_gone_in_each(sd1: Any, upscaler: str) -> None:
    job = hires(0, "euler", hires_upscaler=upscaler, hires_strength=0.5)
    total = 4 + 2
    for stop_after in range(1, total + 3):
        engine = Engine(sd1, slots=1)
        engine.admit(engine.prepare(job, "handle", interactive=True))
        seen: list[int] = []
        for _ in range(stop_after):
            engine.step()
            seen += [done for _, done, steps in engine.interactive_progress() if steps == total]
            left = dict(engine.remaining()).get("handle")
            assert left is None or 0 <= left <= total
        assert seen == sorted(seen)
        if engine.busy:
            assert engine.cancel("handle")
            assert not engine.busy
            engine.check_integrity()
            assert engine.free == 1


def test_partial_images_are_spread_over_both_stages(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    engine.admit(hires(0, "euler", partial_images=3, hires_strength=1.0))
    previews = []
    while engine.busy:
        engine.step()
        previews += engine.take_previews()
    assert [(each.number, each.step, each.steps) for each in previews] == [(0, 2, 8), (1, 4, 8), (2, 6, 8)]
    assert [tuple(each.pixels.shape) for each in previews] == [(64, 64, 3), (64, 64, 3), (96, 96, 3)]


def test_the_strip_of_intermediates_is_the_second_stages(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    engine.admit(hires(0, "euler", save_intermediates=True, hires_strength=1.0))
    done = run(engine)[0]
    assert isinstance(done, Rendered)
    assert done.strip is not None
    assert done.strip.shape == (96, 4 * 96, 3)


@pytest.mark.parametrize("upscaler", ["latent", "pixel"])
def test_a_receipt_has_the_jobs_size_and_that_of_the_image(sd1: Any, upscaler: str) -> None:
    engine = Engine(sd1, slots=2)
    job = hires(0, "euler", width=96, hires_upscaler=upscaler)
    engine.admit(job)
    done = run(engine)[0]
    assert isinstance(done, Rendered)
    receipt = ImageFileEncoder(engine, model="m", embed_metadata=True).provenance(done)
    assert (done.width, done.height) == (144, 96)
    assert (receipt["request"]["width"], receipt["request"]["height"]) == (96, 64)
    assert receipt["request"]["hires_scale"] == 1.5
    assert (receipt["hires"]["width"], receipt["hires"]["height"]) == (144, 96)
    assert receipt["hires"]["plan"] != receipt["plan"]
    assert {"wait", "text", "denoise", "decode"} == {*done.timings}
    plain = make(1, scheduler="euler")
    engine.admit(plain)
    other = run(engine)[1]
    assert isinstance(other, Rendered)
    assert "hires" not in ImageFileEncoder(engine, model="m", embed_metadata=True).provenance(other)


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        (
            {"hires_scale": 4.0, "width": 1024},
            "size_not_supported",
            "makes 1024 pixels 4096, more than 2048; write 2 or",
        ),
        ({"hires_strength": 0.1}, "strength_too_low", "hires_strength 0.1 of 4 steps makes no step; .* 11 hires_steps"),
    ],
)
def test_a_second_stage_that_cannot_be_made_is_an_error_with_a_cure(
    sd1: Any, fields: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(JobError, match=message) as raised:
        Engine(sd1, slots=1).prepare(hires(0, "euler", **fields))
    assert raised.value.code == code


def test_an_image_that_cannot_be_encoded_fails_its_own_job(sd1: Any) -> None:
    def encode_image(*_: Any) -> Any:
        raise RuntimeError("the encoder broke")

    engine = Engine(Faulty(sd1, encode_image=encode_image), slots=2)
    for job in (hires(0, "euler", hires_upscaler="pixel"), make(1, scheduler="euler")):
        engine.admit(job)
    done = run(engine)
    assert isinstance(done[1], Rendered)
    failed = done[0]
    assert isinstance(failed, Failed)
    assert (failed.error.code, failed.retry) == ("engine_error", True)
