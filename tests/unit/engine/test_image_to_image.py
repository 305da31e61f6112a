"""Jobs on an image, with and without a mask, mixed with others, give the images of diffusers' own pipelines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import Faulty, pixels, run
from tests.support.input_images import Inputs, by_image_pipeline, paint, paint_mask
from tests.support.pipelines import by_pipeline, render
from tests.support.subjects import Subject, open_subject, own_scheduler_after
from tests.support.tiny import SD_SCHEDULE, make_tiny

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm.step_counts import steps_made
from latentfarm_worker.engine.diffusers_scheduler import make_scheduler, set_steps
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.engine.sampling_plan import plan_for
from latentfarm_worker.engine.self_test import find_fault
from latentfarm_worker.models.facts import facts_of

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel
KINDS = ["sd1", "sd2", "sdxl", "sd3", "flux", "schnell", "chroma", "zimage", "zimage-dynamic"]
SOLVERS = ["ddim", "euler", "euler_a", "dpm++2m", "dpm++2m-karras", "dpm++2s", "dpm++2m-sde", "heun", "unipc", "lms"]
OTHERS = ["pndm", "kdpm2", "kdpm2_a", "deis", "ddpm", "lcm", "tcd", "sa_solver"]
FLOW_SOLVERS = ["flow_euler-karras", "flow_euler-beta", "flow_heun"]


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return open_subject(make_tiny(tmp_path_factory.mktemp("models") / request.param, kind=request.param), request.param)


@pytest.fixture
def subject(loaded: Subject) -> Iterator[Subject]:
    with own_scheduler_after(loaded) as kept:
        yield kept


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs()


def job(index: int, name: str | None = None, **fields: Any) -> Job:
    wanted: dict[str, Any] = {
        "prompt": f"a small painting, number {index}",
        "num_inference_steps": 5 + index % 2,
        "guidance_scale": (3.0, 1.0, 5.5)[index % 3],
        "width": 64,
        "height": 64,
        "seed": index,
    }
    return Job(batch="b", index=index, scheduler=name, **{**wanted, **fields})


def differences(subject: Subject, inputs: Inputs, jobs: list[Job], *, slots: int = 3) -> dict[int, int]:
    """Render jobs in one run, each admitted at another step; return the largest difference to the pipeline's image."""
    prepared = [inputs.prepare(subject.family, each) for each in jobs]
    done = render(Engine(subject.family, slots=slots), prepared)
    found = {}
    for each in jobs:
        if each.image is None:
            image = by_pipeline(subject.pipe, subject.own_config, each)
        else:
            image = by_image_pipeline(subject.pipe, subject.own_config, each, inputs)
        assert image.std() > 20, "a blank image would prove nothing"
        found[each.index] = int(np.abs(image - done[each.index].decoded.numpy()).max())
    return found


def test_strengths_masks_and_texts_mixed_in_one_run_give_the_pipelines_images(subject: Subject, inputs: Inputs) -> None:
    image, other = inputs.add(paint(1)), inputs.add(paint(2, 96, 64))
    mask, soft = inputs.add(paint_mask()), inputs.add(paint_mask(96, 64, left=0.0, right=0.4))
    jobs = [
        job(0),
        job(1, image=image, strength=0.2),
        job(2, image=image, mask_image=mask),
        job(3, image=image, strength=1.0),
        job(4, image=other, width=96, strength=0.7),
        job(5, image=image, mask_image=mask, strength=0.6),
        job(6, image=other, width=96, mask_image=soft, strength=0.9, mask_blur=3),
        job(7),
        job(8, image=image),
    ]
    found = differences(subject, inputs, jobs)
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("loaded", ["sd1"], indirect=True)
def test_every_scheduler_begins_on_an_image_as_in_the_pipeline(subject: Subject, inputs: Inputs) -> None:
    image, mask = inputs.add(paint(3)), inputs.add(paint_mask())
    jobs: list[Job] = []
    for name in (*SOLVERS, *OTHERS):
        at = len(jobs)
        jobs += [job(at, name, image=image, strength=0.55), job(at + 1, name, image=image, mask_image=mask)]
        jobs.append(job(at + 2, name, image=image, mask_image=mask, strength=0.7))
    found = differences(subject, inputs, jobs, slots=4)
    assert max(found.values()) <= BOUND, {each.scheduler: found[each.index] for each in jobs if found[each.index] > 1}


@pytest.mark.parametrize("loaded", ["sd3"], indirect=True)
def test_schedulers_of_flow_matching_begin_on_an_image_as_in_the_pipeline(subject: Subject, inputs: Inputs) -> None:
    image, mask = inputs.add(paint(3)), inputs.add(paint_mask())
    jobs: list[Job] = []
    for name in FLOW_SOLVERS:
        at = len(jobs)
        jobs += [job(at, name, image=image, strength=0.55), job(at + 1, name, image=image, mask_image=mask)]
    found = differences(subject, inputs, jobs, slots=4)
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("loaded", ["sd1"], indirect=True)
def test_another_image_mask_or_strength_gives_another_image(subject: Subject, inputs: Inputs) -> None:
    image, mask = inputs.add(paint(1)), inputs.add(paint_mask())
    base: dict[str, Any] = {
        "image": image,
        "mask_image": mask,
        "strength": 0.6,
        "seed": 7,
        "prompt": "one",
        "guidance_scale": 3.0,
    }
    others: list[dict[str, Any]] = [
        {"image": inputs.add(paint(2))},
        {"mask_image": inputs.add(paint_mask(right=0.9))},
        {"strength": 0.9},
    ]
    jobs = [job(0, **base), *(job(at, **{**base, **other}) for at, other in enumerate(others, 1))]
    done = render(Engine(subject.family, slots=4), [inputs.prepare(subject.family, each) for each in jobs])
    for each in jobs[1:]:
        assert (done[each.index].decoded.int() - done[0].decoded.int()).abs().max() > BOUND + 2, each


# -- company, restarts -------------------------------------------------------------------------------------------


def masked_job(inputs: Inputs, index: int = 0, **fields: Any) -> Job:
    image, mask = inputs.add(paint(1)), inputs.add(paint_mask())
    # its scheduler draws noise in each step, and the generator has advanced further with a mask
    return job(index, "euler_a", **{"image": image, "mask_image": mask, "strength": 0.8, **fields})


def alone(family: Any, inputs: Inputs, wanted: Job, *, slots: int = 3) -> bytes:
    engine = Engine(family, slots=slots)
    engine.admit(inputs.prepare(family, wanted))
    return pixels(run(engine)[wanted.index])


def test_an_image_has_the_same_bytes_in_company(sd1: Any, inputs: Inputs) -> None:
    image = inputs.add(paint(4))
    watched = [masked_job(inputs), job(1, "heun", image=image, strength=0.4), job(2, "dpm++2m")]
    wanted = {each.index: alone(sd1, inputs, each) for each in watched}
    others = [masked_job(inputs, 10, strength=0.5), job(11, "unipc"), job(12, image=image, guidance_scale=1.0)]
    coming = [inputs.prepare(sd1, each) for each in (others[0], watched[2], others[1], *watched[:2], others[2])]
    done = render(Engine(sd1, slots=3), coming)
    assert {index: pixels(done[index]) for index in wanted} == wanted


def test_a_text_has_the_same_bytes_and_plan_as_before_there_were_images(sd1: Any) -> None:
    plan = plan_for(sd1.scheduler_config, "euler", {}, 4)
    assert plan.noised == ()
    on_image = plan_for(sd1.scheduler_config, "euler", {}, 4, steps_made=4)
    assert (on_image.coefficients == plan.coefficients).all()
    assert on_image.digest != plan.digest, "it begins with something else"


def test_memory_that_runs_out_half_way_restarts_a_job_with_a_mask_from_its_image(sd1: Any, inputs: Inputs) -> None:
    calls = iter(range(1000))

    def predict(*arguments: Any) -> torch.Tensor:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sd1.predict(*arguments)  # type: ignore[no-any-return]

    wanted = masked_job(inputs, num_inference_steps=6)
    engine = Engine(Faulty(sd1, predict=predict), slots=4)
    engine.admit(inputs.prepare(sd1, wanted))
    [got] = run(engine).values()
    assert pixels(got) == alone(sd1, inputs, wanted, slots=2)


def test_partial_images_and_intermediates_are_those_of_the_steps_that_are_made(sd1: Any, inputs: Inputs) -> None:
    wanted = masked_job(inputs, num_inference_steps=8, strength=0.5, partial_images=1, save_intermediates=True)
    engine = Engine(sd1, slots=1)
    engine.admit(inputs.prepare(sd1, wanted))
    previews, done = [], []
    while engine.busy:
        done += engine.step()
        previews += engine.take_previews()
    [got] = done
    assert isinstance(got, Rendered)
    assert [(each.step, each.steps) for each in previews] == [(2, 4)]
    assert len(got.frames) == 3
    assert got.strip is not None
    assert got.strip.shape == (64, 4 * 64, 3)


# -- what is kept ------------------------------------------------------------------------------------------------


def test_the_kept_region_is_that_of_the_input_to_the_bit(sd1: Any, inputs: Inputs) -> None:
    wanted = masked_job(inputs)
    [got] = render(Engine(sd1, slots=1), [inputs.prepare(sd1, wanted)]).values()
    assert wanted.image is not None
    assert wanted.mask_image is not None
    original = np.asarray(inputs.image(wanted.image)).astype(int)
    kept = np.asarray(inputs.image(wanted.mask_image)) == 0
    image, decoded = got.pixels.numpy().astype(int), got.decoded.numpy().astype(int)
    assert (image[kept] == original[kept]).all()
    assert (image[~kept] == decoded[~kept]).all()
    assert np.abs(decoded[kept] - original[kept]).max() > 2, "no decoder gives it back"


def test_a_blurred_mask_mixes_both_at_its_edges(sd1: Any, inputs: Inputs) -> None:
    wanted = masked_job(inputs, mask_blur=4)
    [got] = render(Engine(sd1, slots=1), [inputs.prepare(sd1, wanted)]).values()
    assert got.inputs.mask is not None
    assert got.inputs.image is not None
    share = got.inputs.mask[..., None]
    mixed = got.inputs.image * (1 - share) + got.decoded * share
    assert (got.pixels.float() - mixed).abs().max() <= 0.5 + 1e-3
    assert 0 < float(((share > 0.1) & (share < 0.9)).float().mean()) < 1


# -- steps -------------------------------------------------------------------------------------------------------


class _Holder(NamedTuple):
    scheduler: Any


# diffusers warns about its own use of numpy
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 60),
    strength=st.floats(0.01, 1.0) | st.integers(1, 20).map(lambda twentieths: twentieths / 20),
    kind=st.sampled_from(
        [
            ("EulerDiscreteScheduler", "StableDiffusionImg2ImgPipeline"),
            ("HeunDiscreteScheduler", "StableDiffusionXLImg2ImgPipeline"),
            ("FlowMatchEulerDiscreteScheduler", "FluxImg2ImgPipeline"),
            ("FlowMatchHeunDiscreteScheduler", "StableDiffusion3InpaintPipeline"),
            ("FlowMatchEulerDiscreteScheduler", "ZImageImg2ImgPipeline"),
        ]
    ),
)
def test_the_first_step_is_that_of_the_pipeline(steps: int, strength: float, kind: tuple[str, str]) -> None:
    name, pipeline = kind
    made = steps_made(steps, strength, flow=name.startswith("Flow"))
    config = {"num_train_timesteps": 1000} if name.startswith("Flow") else SD_SCHEDULE
    ours, theirs = make_scheduler(name, config, {}), make_scheduler(name, config, {})
    theirs.set_timesteps(steps)
    wanted, left = getattr(diffusers, pipeline).get_timesteps(_Holder(theirs), steps, strength, "cpu")
    assert made == left
    if made:
        assert torch.equal(set_steps(ours, steps, steps_made=made), wanted)
        assert ours.begin_index == theirs.begin_index


def test_a_strength_that_makes_no_step_is_refused_with_its_cure(sd1: Any, inputs: Inputs) -> None:
    image = inputs.add(paint(1))
    with pytest.raises(JobError, match=r"0\.1 of 9 steps makes no step; write 0\.112 or more, or 11 steps") as error:
        inputs.prepare(sd1, job(1, "ddim", image=image, strength=0.1, num_inference_steps=9))
    assert error.value.code == "strength_too_low"
    for steps, strength in ((9, 0.112), (11, 0.1)):
        cured = job(1, "ddim", image=image, strength=strength, num_inference_steps=steps)
        assert inputs.prepare(sd1, cured).plan.num_evaluations == 1


def test_a_scheduler_that_cannot_add_noise_to_an_image_is_refused(sd1: Any, inputs: Inputs) -> None:
    with pytest.raises(JobError, match="IPNDMScheduler cannot begin with an image") as caught:
        inputs.prepare(sd1, job(0, "ipndm", image=inputs.add(paint(1))))
    assert caught.value.code == "scheduler"


def test_a_model_that_takes_no_images_refuses_them(sd1: Any, inputs: Inputs) -> None:
    with pytest.raises(JobError, match="takes no image; remove it") as caught:
        inputs.prepare(Faulty(sd1, inputs=()), job(0, image=inputs.add(paint(1))))
    assert caught.value.code == "input_not_supported"


# -- models with channels for the mask ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def inpainting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = make_tiny(tmp_path_factory.mktemp("models") / "inpainting", kind=request.param)
    config = json.loads((folder / "unet" / "config.json").read_text())
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = index["_class_name"].replace("Pipeline", "InpaintPipeline")
    (folder / "model_index.json").write_text(json.dumps(index))
    return open_subject(folder, request.param)


def test_a_model_that_reads_the_mask_gives_the_pipelines_image(inpainting: Subject, inputs: Inputs) -> None:
    image, mask = inputs.add(paint(1)), inputs.add(paint_mask())
    other, soft = inputs.add(paint(2)), inputs.add(paint_mask(left=0.0, right=0.5))
    jobs = [
        job(0, image=image, mask_image=mask),
        job(1, "euler_a", image=other, mask_image=soft, strength=0.6),
        job(2, "ddim", image=image, mask_image=soft, mask_blur=3),
        job(3, "euler_a", image=image, mask_image=mask),
    ]
    scheduler = inpainting.pipe.scheduler
    found = differences(inpainting, inputs, jobs)
    inpainting.pipe.scheduler = scheduler
    assert max(found.values()) <= BOUND, found


def test_a_model_that_reads_the_mask_needs_one(inpainting: Subject, inputs: Inputs) -> None:
    for fields in ({}, {"image": inputs.add(paint(1))}):
        with pytest.raises(JobError, match="write image and mask_image") as caught:
            inputs.prepare(inpainting.family, job(0, **fields))
        assert caught.value.code == "input_required"
    facts = facts_of(inpainting.family)
    assert facts.inputs == facts.required_inputs == ("image", "mask_image")


def test_a_model_that_reads_the_mask_warms_up_and_is_measured(inpainting: Subject) -> None:
    engine = Engine(inpainting.family, slots=2)
    engine.warm_up()
    assert not engine.busy
    assert find_fault(inpainting.family, 2, on_forward=lambda: None) is None
