"""The same job, mixed with others in one engine, against StableDiffusionPipeline one at a time."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from latentfarm import schedulers
from latentfarm.job import Job
from latentfarm_worker.engine import Engine, Rendered

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel
PRK = {"skip_prk_steps": True}  # without it PNDM begins with Runge-Kutta steps, which no plan holds
# StableDiffusionPipeline itself cannot run flow matching: the scheduler has no init_noise_sigma
NAMES = [None, *(name for name in schedulers.SHORT_NAMES if name != "flow_euler")]


def job(index: int, name: str | None, **fields: Any) -> Job:
    options = PRK if name == "pndm" else {}
    wanted: dict[str, Any] = {
        "prompt": f"a small painting, number {index}",
        "negative_prompt": "blurry" if index % 2 else "",
        "num_inference_steps": 4 + index % 4,
        "guidance_scale": (7.5, 1.0, 3.0)[index % 3],
        "seed": index,
    }
    return Job(batch="b", index=index, scheduler=name, scheduler_options=options, **{**wanted, **fields})


def by_pipeline(pipe: Any, own_config: Any, wanted: Job) -> np.ndarray[Any, Any]:
    name = schedulers.resolve(wanted.scheduler or own_config["_class_name"])
    cls = getattr(diffusers, name.class_name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.scheduler = cls.from_config(own_config, **{**name.options, **wanted.scheduler_options})
        picture = pipe(
            wanted.prompt,
            negative_prompt=wanted.negative_prompt,
            width=wanted.width,
            height=wanted.height,
            num_inference_steps=wanted.num_inference_steps,
            guidance_scale=wanted.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(wanted.seed),
        ).images[0]
    return np.asarray(picture).astype(int)


def render(engine: Engine, jobs: list[Job]) -> dict[int, Rendered]:
    """Run jobs that join one a step."""
    done, coming = {}, list(jobs)
    while coming or engine.busy:
        if coming:
            engine.admit(coming.pop(0))
        for result in engine.step():
            assert isinstance(result, Rendered), result
            done[result.job.index] = result
        engine.check_integrity()
    return done


@pytest.fixture(scope="module")
def own_config(pipeline: Any) -> Any:
    return dict(pipeline.scheduler.config, _class_name=type(pipeline.scheduler).__name__)


def test_every_scheduler_mixed_in_one_run_gives_the_pipelines_picture(
    family: Any, pipeline: Any, own_config: Any
) -> None:
    jobs = [job(index, name) for index, name in enumerate(NAMES)]
    done = render(Engine(family, slots=3), jobs)
    worst = {}
    for wanted in jobs:
        picture = by_pipeline(pipeline, own_config, wanted)
        assert picture.std() > 20, "a flat picture would prove nothing"
        worst[wanted.scheduler] = int(np.abs(picture - done[wanted.index].pixels.numpy()).max())
    assert max(worst.values()) <= BOUND, worst


def test_another_seed_or_scheduler_or_prompt_is_told_apart(family: Any, pipeline: Any, own_config: Any) -> None:
    picture = by_pipeline(pipeline, own_config, job(0, "euler"))
    others = [
        job(0, "euler", seed=99),
        job(0, "ddim"),
        job(0, "euler", prompt="x"),
        job(0, "euler", guidance_scale=5),
    ]
    for other in others:
        pixels = render(Engine(family, slots=1), [other])[0].pixels.numpy()
        assert np.abs(picture - pixels).max() > BOUND + 2, other


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.3, 1.0), (0.25, 0.75), (0.0, 0.01)])
def test_guidance_for_part_of_the_steps_is_the_pipelines_with_guidance_switched(
    family: Any, pipeline: Any, own_config: Any, interval: tuple[float, float]
) -> None:
    wanted = job(0, "euler", num_inference_steps=8, guidance_interval=interval)
    engine = Engine(family, slots=1)
    engine.admit(wanted)
    free = []
    while not (outcomes := engine.step()):
        engine.check_integrity()
        free.append(engine._rows is not None and len(engine._rows.free))
    [got] = outcomes
    assert isinstance(got, Rendered)
    picture = by_switching_pipeline(pipeline, own_config, wanted)
    assert np.abs(picture - got.pixels.numpy()).max() <= BOUND
    # the second row is somebody else's as soon as guidance is over
    assert free == [int(call >= interval[1] * 8) for call in range(1, 8)]


def by_switching_pipeline(pipe: Any, own_config: Any, wanted: Job) -> np.ndarray[Any, Any]:
    """Render with diffusers, switching guidance on and off at the end of the step before."""
    start, stop = wanted.guidance_interval or (0.0, 1.0)
    steps = wanted.num_inference_steps
    cpu = torch.device("cpu")
    positive, negative = pipe.encode_prompt(
        wanted.prompt, cpu, 1, do_classifier_free_guidance=True, negative_prompt=wanted.negative_prompt
    )

    def switch(pipe: Any, step: int, _timestep: Any, _tensors: Any) -> dict[str, torch.Tensor]:
        guided = start <= (step + 1) / steps < stop
        pipe._guidance_scale = wanted.guidance_scale if guided else 1.0
        return {"prompt_embeds": torch.cat([negative, positive]) if guided else positive}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(own_config)
        picture = pipe(
            wanted.prompt,
            negative_prompt=wanted.negative_prompt,
            num_inference_steps=steps,
            guidance_scale=wanted.guidance_scale if start == 0 else 1.0,
            generator=torch.Generator("cpu").manual_seed(wanted.seed),
            callback_on_step_end=switch,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        ).images[0]
    return np.asarray(picture).astype(int)


def test_other_sizes_and_long_and_foreign_prompts(family: Any, pipeline: Any, own_config: Any) -> None:
    jobs = [
        job(0, "euler", width=96, height=64),
        job(1, "dpm++2m", width=64, height=128, prompt="wörter, 言葉, 🎨 " * 9),
        job(2, "unipc", prompt=""),
    ]
    done = render(Engine(family, slots=2), jobs)
    for wanted in jobs:
        picture = by_pipeline(pipeline, own_config, wanted)
        result = done[wanted.index]
        assert (result.height, result.width) == picture.shape[:2]
        assert np.abs(picture - result.pixels.numpy()).max() <= BOUND, wanted
    assert [done[index].truncated for index in range(3)] == [(), ("prompt",), ()]
