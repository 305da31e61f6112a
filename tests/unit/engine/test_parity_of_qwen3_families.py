"""FLUX.2 klein and Z-Image: jobs mixed in one engine give the images of the model's own pipeline, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import pixels
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

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models import load_family

pytestmark = [pytest.mark.unit, pytest.mark.slow]

BOUND = 1  # of 255, per channel
KINDS: tuple[Kind, ...] = ("flux2", "flux2-distilled", "zimage", "zimage-dynamic")
#: with the chat template they have up to 32, 64 and 96 tokens, and more than are read
PROMPTS = ("a cat", "a small painting of hills in the morning", "many words " * 5, "wörter, 言葉, 🎨 " * 9)
SIZES = ((64, 64), (96, 64), (64, 128), (80, 112))
EULER = (None, "flow_euler", "flow_euler-karras", "flow_euler-exponential", "flow_euler-beta")
#: Z-Image's pipeline passes noise levels to its scheduler, which these do not take
OTHERS = ("dpm++2m", "dpm++3m", "dpm++2s", "unipc", "deis")


def job(index: int, name: str | None = None, **fields: Any) -> Job:
    width, height = SIZES[index % 4]
    wanted: dict[str, Any] = {
        "prompt": f"{index} {PROMPTS[index % 4]}",
        "negative_prompt": PROMPTS[index // 2 % 4] if index % 3 else "",
        "num_inference_steps": 2 + index % 3,
        # of Z-Image every scale over 0 is guidance, and of klein every scale over 1
        "guidance_scale": (4.0, 0.0, 2.5, 1.0, 0.5)[index % 5],
        "seed": index,
        "width": width,
        "height": height,
    }
    return Job(batch="b", index=index, scheduler=name, **{**wanted, **fields})


class Model:
    """A tiny model by both sides."""

    def __init__(self, folder: Path) -> None:
        self.family: Any = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
        self.pipe = open_pipeline(folder)
        self.own_config = config_of(self.pipe)

    def worst(self, jobs: list[Job], *, slots: int = 3) -> int:
        found = differences(self.family, self.pipe, self.own_config, jobs, slots=slots)
        assert len(found) == len(jobs)
        return max(found.values())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: Model(make_tiny(folder / kind, kind=kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, models: dict[str, Model]) -> Model:
    return models[request.param]


def test_every_scheduler_mixed_in_one_run_gives_the_pipelines_image(model: Model) -> None:
    names = EULER if model.family.pipeline == "ZImagePipeline" else (*EULER, *OTHERS)
    assert model.worst([job(index, name) for index, name in enumerate(names)]) <= BOUND


@pytest.mark.parametrize("kind", ["flux2", "zimage"])
def test_few_and_many_steps_mixed_in_one_run_give_the_pipelines_image(models: dict[str, Model], kind: Kind) -> None:
    jobs = [job(index, num_inference_steps=steps) for index, steps in enumerate((28, 1, 2, 9, 4, 1))]
    assert models[kind].worst(jobs) <= BOUND


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 6.0])
def test_any_guidance_with_prompts_of_any_length_is_the_pipelines(model: Model, scale: float) -> None:
    jobs = [
        job(index, guidance_scale=scale, prompt=prompt, negative_prompt=negative, num_inference_steps=3)
        for index, (prompt, negative) in enumerate(zip(PROMPTS, (*PROMPTS[2:], "", "x"), strict=False))
    ]
    assert model.worst(jobs, slots=2) <= BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_another_prompt_negative_prompt_or_guidance_gives_another_image(models: dict[str, Model], kind: Kind) -> None:
    model, wanted = models[kind], job(0, num_inference_steps=4)
    image = by_pipeline(model.pipe, model.own_config, wanted)
    changes: dict[str, Any] = {"prompt": "a dog", "seed": 7, "num_inference_steps": 5}
    guidance: dict[str, Any] = {"negative_prompt": "a dog", "guidance_scale": 2.0}
    for name, value in {**changes, **guidance}.items():
        other = wanted.model_copy(update={name: value})
        off = difference(image, render(Engine(model.family, slots=1), [other])[0])
        if name in guidance and kind == "flux2-distilled":
            assert off <= BOUND, "a distilled model takes no guidance"
        else:
            assert off > BOUND + 2, name


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("flux2", "flow_euler", {"stochastic_sampling": True}),
        ("flux2", "dpm++2m-sde", {}),
        ("zimage", "flow_euler", {"stochastic_sampling": True}),
    ],
)
def test_noise_of_the_steps_is_drawn_as_the_pipelines_scheduler_would_from_the_jobs_generator(
    models: dict[str, Model], kind: Kind, name: str, options: dict[str, Any]
) -> None:
    model = models[kind]
    wanted = job(0, name, scheduler_options=options, num_inference_steps=4)
    image = by_drawing_pipeline(model, wanted)
    assert difference(image, render(Engine(model.family, slots=1), [wanted])[0]) <= BOUND


def by_drawing_pipeline(model: Model, wanted: Job) -> np.ndarray[Any, Any]:
    """Return the image of a pipeline whose scheduler draws from the job's generator, in the shape of the latents.

    The pipelines themselves give the scheduler no generator, so their noise differs from run to run.
    """
    set_scheduler(model.pipe, model.own_config, wanted)
    generator = torch.Generator("cpu").manual_seed(wanted.seed)
    step = model.pipe.scheduler.step
    width = (wanted.width or 0) // model.family.vae_scale_factor

    def draw(output: torch.Tensor, timestep: Any, latents: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        if latents.dim() == 4:
            return (step(output, timestep, latents, generator=generator, return_dict=False)[0],)
        unpacked = [tokens.mT.reshape(1, tokens.shape[2], -1, width) for tokens in (output, latents)]
        return (step(unpacked[0], timestep, unpacked[1], generator=generator, return_dict=False)[0].flatten(2).mT,)

    model.pipe.scheduler.step = draw
    return call(model.pipe, wanted, generator=generator)


@pytest.mark.parametrize("kind", ["flux2", "zimage"])
def test_guidance_in_an_interval_of_the_steps_frees_its_row(models: dict[str, Model], kind: Kind) -> None:
    family = models[kind].family
    whole, none, part = (
        render(Engine(family, slots=1), [job(0, num_inference_steps=6, **fields)])[0].pixels
        for fields in ({}, {"guidance_scale": 0.0}, {"guidance_interval": (0.0, 0.5)})
    )
    assert not torch.equal(part, whole)
    assert not torch.equal(part, none)


# -- any company -------------------------------------------------------------------------------------------------

companies = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([None, "flow_euler-beta", "unipc"]), st.integers(0, 2)), max_size=5
)


@pytest.fixture(scope="module")
def alone(models: dict[str, Model]) -> dict[tuple[str, int], bytes]:
    return {
        (kind, index): pixels(render(Engine(models[kind].family, slots=3), [job(index)])[index])
        for kind in ("flux2", "zimage")
        for index in range(4)
    }


@settings(max_examples=10, deadline=None)
@given(kind=st.sampled_from(["flux2", "zimage"]), which=st.integers(0, 3), company=companies, place=st.integers(0, 5))
def test_the_same_bytes_alone_and_in_company_with_prompts_of_any_length(
    models: dict[str, Model],
    alone: dict[tuple[str, int], bytes],
    kind: str,
    which: int,
    company: list[tuple[int, str | None, int]],
    place: int,
) -> None:
    engine, done = Engine(models[kind].family, slots=3), {}
    coming = [(job(10 + at, name, seed=seed), steps) for at, (seed, name, steps) in enumerate(company)]
    coming.insert(min(place, len(coming)), (job(which), 1))
    while coming or engine.busy:
        if coming:
            wanted, steps = coming.pop(0)
            engine.admit(wanted)
        for _ in range(steps):
            for result in engine.step():
                assert isinstance(result, Rendered), result
                done[result.job.index] = result
            engine.check_integrity()
        steps = 1
    assert len(done) == len(company) + 1
    assert pixels(done[which]) == alone[kind, which]
