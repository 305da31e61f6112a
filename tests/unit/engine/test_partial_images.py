"""Partial images: what each evaluation implies for the finished image, without any effect on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.engines import Faulty, make, pixels
from tests.support.tiny import SD_SCHEDULE

from latentfarm import schedulers
from latentfarm_worker.engine.diffusers_scheduler import make_scheduler, scale_input, set_steps, step_arguments
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.outcomes import Preview
from latentfarm_worker.engine.sampling_plan import plan_for

pytestmark = pytest.mark.unit

CONFIG = {"_class_name": "DDIMScheduler", **SD_SCHEDULE}


def render(engine: Engine, *jobs: Any) -> tuple[dict[int, Any], list[Preview]]:
    """Render jobs; return their outcomes and all partial images."""
    for job in jobs:
        engine.admit(job)
    done, previews = {}, []
    while engine.busy:
        outcomes = engine.step()
        previews += engine.take_previews()
        done.update({each.job.index: each for each in outcomes})
        engine.check_integrity()
    return done, previews


#: one of each kind of timesteps and of scaled inputs, with the model's own prediction of each
KNOWN = [
    *[(solver, "epsilon") for solver in ("ddim", "pndm", "heun", "kdpm2_a", "unipc", "lcm", "dpm++2m-karras")],
    *[("euler-karras", prediction) for prediction in ("epsilon", "v_prediction", "sample")],
    *[("edm_euler", prediction) for prediction in ("epsilon", "v_prediction")],
    ("ipndm", None),
    ("flow_euler", None),
    ("flow_heun", None),
]
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


# diffusers warns about its own use of numpy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("solver", "prediction"), KNOWN)
def test_a_model_whose_estimates_are_one_image_leads_every_scheduler_to_this_image(
    solver: str, prediction: str | None
) -> None:
    named = schedulers.resolve(solver)
    options = {**named.options, **({"prediction_type": prediction} if prediction else {})}
    # few steps are too coarse for a solver that begins with a multistep method
    steps = 50 if solver == "ipndm" else 12
    config = FLOW if solver.startswith("flow_") else CONFIG
    plan = plan_for(config, solver, options, steps)
    scheduler = make_scheduler(named.class_name, config, options)
    set_steps(scheduler, steps)
    generator = torch.Generator("cpu").manual_seed(1)
    arguments = step_arguments(scheduler, generator)
    target, sample = torch.randn((2, 1, 4, 8, 8), generator=generator, dtype=torch.float64).unbind()
    sample = plan.init_noise_sigma * sample
    for timestep, (of_sample, of_output) in zip(scheduler.timesteps, plan.estimates, strict=True):
        scale_input(scheduler, sample, timestep)
        output = (target - of_sample * sample) / of_output
        sample = scheduler.step(output, timestep, sample, **arguments, return_dict=False)[0]
    # what remains is the noise of a scheduler's last level
    assert float((sample - target).std()) < 0.05, float((sample - target).std())


def test_partial_images_come_at_even_steps_and_change_no_image(sd1: Any) -> None:
    watched = make(0, num_inference_steps=8, scheduler="euler", partial_images=3)
    other = make(1, num_inference_steps=8, scheduler="euler")
    done, previews = render(Engine(sd1, slots=3), watched, other)
    plain, none = render(Engine(sd1, slots=3), make(0, num_inference_steps=8, scheduler="euler"), other)
    assert [(each.handle, each.number, each.step, each.steps) for each in previews] == [
        ("b/0", number, 2 + 2 * number, 8) for number in range(3)
    ]
    assert not none
    assert [pixels(done[index]) for index in (0, 1)] == [pixels(plain[index]) for index in (0, 1)]
    # each is nearer to the image than the one before
    errors = [float((each.pixels.float() - done[0].pixels.float()).abs().mean()) for each in previews]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_an_estimate_after_the_last_evaluation_is_the_image(sd1: Any) -> None:
    for guidance_scale in (1.0, 5.0):
        engine = Engine(sd1, slots=1)
        engine.admit(make(0, num_inference_steps=4, scheduler="euler", guidance_scale=guidance_scale))
        for _ in range(3):
            engine.step()
        [image] = engine._running
        batch = engine._running.batch
        assert batch is not None
        with torch.inference_mode():
            engine._denoise()
        torch.testing.assert_close(batch.estimate(image), batch.latents(image), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("steps", "wanted", "expected"), [(8, 1, [4]), (20, 3, [5, 10, 15]), (2, 3, [1]), (1, 3, []), (8, 0, [])]
)
def test_an_image_with_few_steps_has_fewer_partial_images(
    sd1: Any, steps: int, wanted: int, expected: list[int]
) -> None:
    image = Engine(sd1, slots=1).prepare(make(0, num_inference_steps=steps, scheduler="euler", partial_images=wanted))
    assert [*image.preview_steps] == expected


def test_a_partial_image_that_cannot_be_decoded_is_left_out_and_the_image_is_made(sd1: Any) -> None:
    calls = []

    def decode(latents: torch.Tensor, **options: bool) -> Any:
        calls.append(latents)
        if len(calls) == 1:
            raise RuntimeError("the first decoding fails")
        if len(calls) == 2:
            latents = latents * float("nan")
        return sd1.decode(latents, **options)

    done, previews = render(
        Engine(Faulty(sd1, decode=decode), slots=1), make(0, num_inference_steps=8, scheduler="euler", partial_images=3)
    )
    assert [each.number for each in previews] == [2]
    assert pixels(done[0])


def test_a_cancelled_image_has_no_further_partial_image(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    engine.admit(make(0, num_inference_steps=4, scheduler="euler", partial_images=3))
    engine.step()
    assert engine.cancel("b/0")
    assert engine.take_previews() == []
    assert not engine.busy


def test_an_image_that_starts_again_does_not_repeat_its_partial_images(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    engine.admit(make(0, num_inference_steps=6, scheduler="euler", partial_images=2))
    previews = []
    for _ in range(3):
        engine.step()
        previews += engine.take_previews()
    engine._broken._restart([*engine._running])
    while engine.busy:
        engine.step()
        previews += engine.take_previews()
    assert [each.number for each in previews] == [0, 1]
