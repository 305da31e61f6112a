"""Sampling plans against the schedulers' own step loops."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tiny import SD_SCHEDULE

from latentfarm import schedulers
from latentfarm.errors import JobError
from latentfarm_worker.engine import sampling_plan as plans
from latentfarm_worker.engine.diffusers_scheduler import make_scheduler, scale_input, set_steps, step_arguments
from latentfarm_worker.noise_schedule import OWN_SCHEDULE, NoiseSchedule, even_sigmas

pytestmark = pytest.mark.unit

CONFIG: dict[str, Any] = {"_class_name": "PNDMScheduler", **SD_SCHEDULE, "skip_prk_steps": True}
FLOW: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
DYNAMIC: dict[str, Any] = {**FLOW, "use_dynamic_shifting": True, "shift_terminal": 0.02}
FLOW_SOLVERS = [
    name
    for name, spec in schedulers.SHORT_NAMES.items()
    if name in {"dpm++2m", "dpm++2m-sde", "dpm++3m", "dpm++2s", "deis", "sa_solver", "unipc"}
    or spec.class_name.startswith("FlowMatch")
]
BOUND = 2e-6


def by_loop(
    name: str,
    config: dict[str, Any],
    steps: int,
    start: torch.Tensor,
    outputs: torch.Tensor,
    schedule: NoiseSchedule = OWN_SCHEDULE,
) -> torch.Tensor:
    """Run the scheduler's own loop, as the diffusers pipelines do."""
    resolved = schedulers.fit(schedulers.resolve(name), config)
    scheduler = make_scheduler(resolved.class_name, config, resolved.options)
    set_steps(scheduler, steps, schedule)
    arguments = step_arguments(scheduler, torch.Generator("cpu").manual_seed(5))
    sample = start * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for call, timestep in enumerate(scheduler.timesteps):
        scale_input(scheduler, sample, timestep)
        sample = scheduler.step(outputs[call], timestep, sample, **arguments, return_dict=False)[0]
    return sample


def compare(name: str, prediction: str, steps: int, train_steps: int = 1000) -> float:
    return compare_with({**CONFIG, "prediction_type": prediction, "num_train_timesteps": train_steps}, name, steps)


def compare_with(
    config: dict[str, Any], name: str, steps: int, schedule: NoiseSchedule = OWN_SCHEDULE, **options: Any
) -> float:
    config = {**config, **options}
    plan = plans.plan_for(config, name, {}, steps, schedule)
    source = torch.Generator("cpu").manual_seed(steps)
    # float64 separates a wrong coefficient from rounding; noise is drawn in float32, as in the engine
    dtype = torch.float32 if any(plan.uses_noise) else torch.float64
    start = torch.randn((1, 4, 8, 8), generator=source, dtype=dtype)
    outputs = torch.randn((plan.num_evaluations, 1, 4, 8, 8), generator=source, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = by_loop(name, config, steps, start, outputs, schedule)
    generator = torch.Generator("cpu").manual_seed(5)
    got = plans.replay(plan, start * plan.init_noise_sigma, lambda call: outputs[call], generator)
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", FLOW_SOLVERS)
@pytest.mark.parametrize("steps", [1, 5, 28])
def test_a_plan_gives_the_loops_samples_for_a_flow_matching_model(name: str, steps: int) -> None:
    if name.endswith("-beta") and steps == 1:
        pytest.skip("diffusers makes no beta schedule of one step")
    assert compare_with(FLOW, name, steps) < BOUND


@pytest.mark.parametrize("name", ["flow_euler", "unipc", "dpm++2m"])
def test_a_plan_has_the_noise_levels_of_the_models_pipeline(name: str) -> None:
    schedule = NoiseSchedule(even_sigmas(6), mu=0.8)
    assert compare_with(DYNAMIC, name, 6, schedule) < BOUND
    plan = plans.plan_for(DYNAMIC, name, {}, 6, schedule)
    others = [NoiseSchedule(even_sigmas(6), mu=1.1), NoiseSchedule(even_sigmas(6), mu=0.8)]
    assert [plans.plan_for(DYNAMIC, name, {}, 6, each).digest == plan.digest for each in others] == [False, True]


def test_stochastic_flow_matching_draws_noise_in_each_step() -> None:
    assert compare_with(FLOW, "flow_euler", 5, stochastic_sampling=True) < BOUND
    assert all(plans.plan_for({**FLOW, "stochastic_sampling": True}, None, {}, 5).uses_noise)


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (FLOW, "ddim", "DDIMScheduler does not fit a flow-matching model; write one of .*flow_euler"),
        (FLOW, "dpm++2m-karras", "DPMSolverMultistepScheduler with karras does not fit a flow-matching model"),
        (CONFIG, "flow_euler", "is for flow-matching models, and this model is none; write one of ddim"),
    ],
)
def test_a_scheduler_that_does_not_fit_the_model_is_refused(config: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(JobError, match=message) as raised:
        plans.plan_for(config, name, {}, 5)
    assert raised.value.code == "scheduler"


DIFFUSION_SOLVERS = [name for name in schedulers.SOLVERS if not name.startswith("flow_")]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", DIFFUSION_SOLVERS)
def test_a_plan_gives_the_loops_samples(name: str, prediction: str) -> None:
    if name == "edm_euler" and prediction == "v_prediction":
        prediction = "epsilon"  # EDM has no v_prediction
    assert compare(name, prediction, 7) < BOUND
    if prediction == "epsilon":
        # the prediction type changes the coefficients of each step in the same way
        assert compare(name, prediction, 12) < BOUND


@pytest.mark.parametrize(
    "name", [name for name in schedulers.SHORT_NAMES if name not in schedulers.SOLVERS and not name.startswith("flow_")]
)
def test_a_plan_with_a_schedule_gives_the_loops_samples(name: str) -> None:
    # diffusers' KDPM2 computes all training steps before it takes a few
    train_steps = 100 if name.startswith("kdpm2") else 1000
    # 50 steps of a beta schedule begin with one timestep twice
    assert compare(name, "epsilon", 50 if name == "dpm++2m-beta" else 4, train_steps) < BOUND


@pytest.mark.parametrize("name", ["dpm++2m-exponential", "dpm++2m-trailing", "dpm++3m", "sa_solver", "euler_a-leading"])
def test_a_name_means_its_algorithm_and_schedule_with_any_config_of_the_model(name: str) -> None:
    own = {**CONFIG, "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}
    karras = {"use_karras_sigmas": True} if "-" in name else {}
    found = plans.plan_for({**own, **karras}, name, {}, 4)
    assert found.digest == plans.plan_for(CONFIG, name, {}, 4).digest


@settings(max_examples=8, deadline=None)
@given(
    name=st.sampled_from(["pndm", "euler_a", "heun", "dpm++2m-karras", "dpm++2s", "unipc", "lcm", "sa_solver"]),
    steps=st.integers(min_value=2, max_value=50),
)
def test_a_plan_gives_the_loops_samples_at_any_step_count(name: str, steps: int) -> None:
    assert compare(name, "epsilon", steps) < BOUND


@pytest.mark.parametrize("name", ["euler", "ddim", "dpm++2m", "unipc", "heun", "pndm", "euler_a"])
def test_one_step_is_enough_for_a_plan(name: str) -> None:
    assert compare(name, "epsilon", 1) < BOUND


def test_a_scheduler_may_evaluate_the_model_more_than_once_a_step() -> None:
    assert plans.plan_for(CONFIG, "euler", {}, 10).num_evaluations == 10
    assert plans.plan_for(CONFIG, "heun", {}, 10).num_evaluations == 19
    assert plans.plan_for(CONFIG, None, {}, 10).num_evaluations == 11  # PNDM, the model's own


def test_only_stochastic_schedulers_use_noise() -> None:
    assert not any(plans.plan_for(CONFIG, "euler", {}, 5).uses_noise)
    assert all(plans.plan_for(CONFIG, "euler_a", {}, 5).uses_noise)


def test_plans_are_cached_and_different_plans_have_different_digests() -> None:
    plan = plans.plan_for(CONFIG, "euler", {}, 5)
    assert plans.plan_for(dict(CONFIG), "euler", {}, 5) is plan
    others = [
        plans.plan_for(CONFIG, "euler", {}, 6),
        plans.plan_for(CONFIG, "euler", {"use_karras_sigmas": True}, 5),
    ]
    assert len({plan.digest, *(other.digest for other in others)}) == 3
    assert len(plan.digest) == 64


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {"thresholding": True}),
        ("ddpm", {"thresholding": True}),
        ("unipc", {"thresholding": True}),
        ("ddim", {"clip_sample": True}),
        ("lcm", {"clip_sample": True}),
    ],
)
def test_a_scheduler_that_clips_or_thresholds_is_refused_by_name(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(JobError, match=schedulers.resolve(name).class_name) as refused:
        plans.plan_for(CONFIG, name, options, 5)
    assert refused.value.code == "scheduler"
    assert f"set {next(iter(options))} to false" in str(refused.value)


def test_pndms_runge_kutta_start_is_refused_with_its_cure() -> None:
    with pytest.raises(JobError, match="set skip_prk_steps to true"):
        plans.plan_for(CONFIG, "pndm", {"skip_prk_steps": False}, 8)


@pytest.mark.parametrize(
    ("name", "options", "steps", "message"),
    [
        ("euler", {"use_karras": True}, 5, "no 'use_karras'; write one of .*use_karras_sigmas"),
        ("dpm++2m", {"algorithm_type": "magic"}, 5, "DPMSolverMultistepScheduler .*magic"),
        ("lcm", {}, 400, "num_inference_steps=400"),
        ("nonsense", {}, 5, "'nonsense' is not known"),
    ],
)
def test_options_refused_by_diffusers_are_refused(name: str, options: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(JobError, match=message) as refused:
        plans.plan_for(CONFIG, name, options, steps)
    assert refused.value.code == "scheduler"


def test_a_models_own_scheduler_without_a_plan_is_refused() -> None:
    with pytest.raises(JobError, match="RePaintScheduler has no tested sampling plan"):
        plans.plan_for({**CONFIG, "_class_name": "RePaintScheduler"}, None, {}, 5)
