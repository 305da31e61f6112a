"""Jobs of SD3, FLUX.1 and Chroma mixed in one engine give the images of diffusers' pipelines, one at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.support.pipelines import (
    by_pipeline,
    call,
    difference,
    differences,
    render,
    set_scheduler,
)
from tests.support.subjects import Subject, open_subject, own_scheduler_after
from tests.support.tiny import make_tiny

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models.flux import pack

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel
#: without T5 only the text differs from sd3's
WITH_T5 = ["sd3", "flux", "schnell", "chroma"]
KINDS = ["sd3-no-t5", *WITH_T5]
SIZES = [(64, 64), (96, 64), (64, 128), (112, 80)]
#: what all pipelines take: the model's own scheduler, its noise levels, and options of its class
EULER: list[tuple[str | None, dict[str, Any]]] = [
    (None, {}),
    ("flow_euler", {}),
    ("flow_euler-karras", {}),
    ("flow_euler-exponential", {}),
    ("flow_euler-beta", {}),
    ("flow_euler", {"shift": 5.0, "use_dynamic_shifting": False}),
    ("flow_euler", {"shift_terminal": 0.02}),
    ("flow_euler", {"use_dynamic_shifting": True}),
    ("flow_euler", {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.1}),
]
WITH_FLOW_SIGMAS = ["deis", "dpm++2m", "dpm++2s", "dpm++3m", "unipc"]
#: the pipelines of FLUX.1 and Chroma pass the shift of an image's size to each scheduler, and most refuse it if they do
#: not shift by it
OTHERS = {
    "sd3": ["flow_heun", *WITH_FLOW_SIGMAS],
    "flux": WITH_FLOW_SIGMAS,
    "schnell": [],
    "chroma": [],
}
#: a pipeline draws the noise of its steps from torch's own generator; here it gets that of the job's seed
EULER_SDE = ("flow_euler", {"stochastic_sampling": True}, "scheduling_flow_match_euler_discrete")
DPM_SDE: tuple[str, dict[str, Any], str] = ("dpm++2m-sde", {}, "scheduling_dpmsolver_multistep")
SA_SOLVER: tuple[str, dict[str, Any], str] = ("sa_solver", {}, "scheduling_sasolver")


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return open_subject(make_tiny(tmp_path_factory.mktemp("models") / request.param, kind=request.param), request.param)


@pytest.fixture
def subject(loaded: Subject) -> Iterator[Subject]:
    with own_scheduler_after(loaded) as kept:
        yield kept


def job(index: int, name: str | None = None, **fields: Any) -> Job:
    width, height = SIZES[index % 4]
    wanted: dict[str, Any] = {
        "prompt": f"a small painting, number {index}",
        "negative_prompt": "blurry" if index % 2 else "",
        "num_inference_steps": 3 + index % 2,
        "guidance_scale": (7.0, 1.0, 3.5)[index % 3],
        "width": width,
        "height": height,
        "seed": index,
    }
    return Job(batch="b", index=index, scheduler=name, **{**wanted, **fields})


def test_steps_sizes_and_guidance_mixed_in_one_run_give_the_pipelines_image(subject: Subject) -> None:
    jobs = [job(index, num_inference_steps=steps) for index, steps in enumerate((4, 1, 28, 2, 9, 1, 3))]
    jobs.append(job(7, guidance_scale=0.0))
    found = differences(subject.family, subject.pipe, subject.own_config, jobs)
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("loaded", WITH_T5, indirect=True)
def test_every_scheduler_that_the_pipeline_takes_gives_its_image(subject: Subject) -> None:
    wanted = [*EULER, *((name, {}) for name in OTHERS[subject.kind])]
    jobs = [
        job(index, name, num_inference_steps=5 + index % 3, scheduler_options=options)
        for index, (name, options) in enumerate(wanted)
    ]
    found = differences(subject.family, subject.pipe, subject.own_config, jobs)
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize(
    ("loaded", "name", "options", "module"),
    [*((kind, *EULER_SDE) for kind in WITH_T5), ("sd3", *DPM_SDE), ("flux", *DPM_SDE), ("sd3", *SA_SOLVER)],
    indirect=["loaded"],
)
def test_noise_of_the_steps_is_the_pipelines_with_a_seeded_generator(
    subject: Subject, name: str, options: dict[str, Any], module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(index, name, num_inference_steps=4, scheduler_options=options) for index in range(3)]
    done = render(Engine(subject.family, slots=3), jobs)
    for wanted in jobs:
        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", noise_of(subject, wanted))
        image = by_pipeline(subject.pipe, subject.own_config, wanted)
        assert difference(image, done[wanted.index]) <= BOUND
        calm = by_pipeline(subject.pipe, subject.own_config, job(wanted.index, num_inference_steps=4))
        assert difference(calm, done[wanted.index]) > BOUND + 2


def noise_of(subject: Subject, wanted: Job) -> Callable[..., torch.Tensor]:
    """Return a stand-in for diffusers' ``randn_tensor`` in a scheduler: the draws after that of the first latents."""
    assert wanted.width is not None
    assert wanted.height is not None
    shape = (1, subject.family.latent_channels, wanted.height // 8, wanted.width // 8)
    generator = torch.Generator("cpu").manual_seed(wanted.seed)
    torch.randn(shape, generator=generator)

    def draw(packed: torch.Size, **_: Any) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        return noise if len(packed) == 4 else pack(noise)

    return draw


def test_another_seed_scheduler_prompt_or_guidance_gives_another_image(subject: Subject) -> None:
    image = by_pipeline(subject.pipe, subject.own_config, job(0))
    others = [job(0, seed=99), job(0, "flow_euler-karras"), job(0, prompt="x"), job(0, guidance_scale=5)]
    if not subject.family.embeds_guidance:
        others.append(job(0, negative_prompt="blurry"))
    for other in others:
        assert difference(image, render(Engine(subject.family, slots=1), [other])[0]) > BOUND + 2, other


def test_long_and_foreign_prompts_are_the_pipelines(subject: Subject) -> None:
    jobs = [
        job(0, prompt="wörter, 言葉, 🎨 " * 9, negative_prompt="blurry " * 50),
        job(1, prompt="x" * 600),
        job(2, prompt=""),
    ]
    done = render(Engine(subject.family, slots=2), jobs)
    for wanted in jobs:
        assert difference(by_pipeline(subject.pipe, subject.own_config, wanted), done[wanted.index]) <= BOUND, wanted
    assert [done[index].truncated for index in (1, 2)] == [("prompt",), ()]


@pytest.mark.parametrize("loaded", ["sd3", "sd3-no-t5"], indirect=True)
def test_layers_of_clip_are_skipped_as_the_pipeline_does(subject: Subject) -> None:
    wanted = job(0, clip_skip=1)
    [done] = render(Engine(subject.family, slots=1), [wanted]).values()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_scheduler(subject.pipe, subject.own_config, wanted)
    assert difference(call(subject.pipe, wanted, clip_skip=1), done) <= BOUND
    assert difference(call(subject.pipe, wanted), done) > BOUND + 2


def test_guidance_takes_a_second_row_only_where_the_pipeline_calls_the_model_twice(subject: Subject) -> None:
    engine = Engine(subject.family, slots=1)
    rows = {scale: len(engine.prepare(job(0, guidance_scale=scale)).prompts) for scale in (0.0, 1.0, 1.5)}
    assert rows == {0.0: 1, 1.0: 1, 1.5: 1 if subject.kind == "flux" else 2}


@pytest.mark.parametrize("loaded", ["sd3"], indirect=True)
@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.3, 1.0)])
def test_guidance_in_an_interval_of_the_steps_is_the_pipelines_with_guidance_switched(
    subject: Subject, interval: tuple[float, float]
) -> None:
    wanted = job(0, num_inference_steps=8, guidance_interval=interval)
    [done] = render(Engine(subject.family, slots=1), [wanted]).values()
    start, stop = interval
    positive, negative, pooled, negative_pooled = subject.pipe.encode_prompt(
        wanted.prompt, None, None, device=torch.device("cpu")
    )
    with_and_without = {
        "prompt_embeds": (torch.cat([negative, positive]), positive),
        "pooled_prompt_embeds": (torch.cat([negative_pooled, pooled]), pooled),
    }

    def switch(pipe: Any, step: int, _timestep: Any, _tensors: Any) -> dict[str, torch.Tensor]:
        guided = start <= (step + 1) / wanted.num_inference_steps < stop
        pipe._guidance_scale = wanted.guidance_scale if guided else 1.0
        return {name: tensors[not guided] for name, tensors in with_and_without.items()}

    image = call(
        subject.pipe,
        wanted,
        guidance_scale=wanted.guidance_scale if start == 0 else 1.0,
        callback_on_step_end=switch,
        callback_on_step_end_tensor_inputs=[*with_and_without],
    )
    assert difference(image, done) <= BOUND
    assert difference(call(subject.pipe, wanted), done) > BOUND + 2
