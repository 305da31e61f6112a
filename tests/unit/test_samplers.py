"""Sampler names of other tools."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from latentfarm import schedulers
from latentfarm.job import Row
from latentfarm.samplers import a1111_sampler, find_sampler, resolve_sampler
from latentfarm.submission.prompts.columns import ReadOptions
from latentfarm.submission.prompts.notes import Notes
from latentfarm.submission.prompts.rows import LocatedRow, RowCheck

pytestmark = pytest.mark.unit

# AUTOMATIC1111 1.10: modules/sd_samplers_kdiffusion.py, sd_samplers_timesteps.py, sd_samplers_lcm.py, sd_schedulers.py
A1111 = [
    *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler"),
    *("LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "DDIM CFG++", "PLMS", "UniPC"),
    "LCM",
]
A1111_SCHEDULES = [
    *("Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal"),
    *("Align Your Steps", "Simple", "Normal", "DDIM", "Beta"),
]
# names with the schedule at the end, as before 1.9, and the names of its first API
A1111_OLD = [
    *("LMS Karras", "DPM2 Karras", "DPM2 a Karras", "DPM++ 2S a Karras", "DPM++ 2M Karras", "DPM++ SDE Karras"),
    *("DPM++ 2M SDE Karras", "DPM++ 2M SDE Exponential", "DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun Exponential"),
    *("DPM++ 3M SDE Karras", "DPM++ 3M SDE Exponential", "k_euler_a", "k_dpm_2_a_ka", "k_dpmpp_2m_sde_exp", "k_dpm_ad"),
]
# comfy/samplers.py of ComfyUI
COMFYUI = [
    *("euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0"),
    *("exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral"),
    *("dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde"),
    *("dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm"),
    *("lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral"),
    *("res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2"),
    *("seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2"),
]
COMFYUI_SCHEDULES = [
    *("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic"),
    "kl_optimal",
]
DIFFUSIONDB = ["ddim", "plms", "k_euler", "k_euler_ancestral", "k_heun", "k_dpm_2", "k_dpm_2_ancestral", "k_lms"]
# invokeai/backend/stable_diffusion/schedulers/schedulers.py
INVOKEAI = [
    *("ddim", "ddpm", "deis", "deis_k", "lms", "lms_k", "pndm", "heun", "heun_k", "euler", "euler_k", "euler_a"),
    *("kdpm_2", "kdpm_2_k", "kdpm_2_a", "kdpm_2_a_k", "dpmpp_2s", "dpmpp_2s_k", "dpmpp_2m", "dpmpp_2m_k"),
    *("dpmpp_2m_sde", "dpmpp_2m_sde_k", "dpmpp_3m", "dpmpp_3m_k", "dpmpp_sde", "dpmpp_sde_k", "unipc", "unipc_k"),
    *("lcm", "tcd"),
]
# sd-scripts: get_my_scheduler in library/train_util.py
KOHYA = [
    *("ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle"),
    *("k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a"),
]
EVERY = [
    *((name, schedule) for name in A1111 for schedule in (None, *A1111_SCHEDULES)),
    *((name, schedule) for name in COMFYUI for schedule in (None, *COMFYUI_SCHEDULES)),
    *((name, None) for name in (*A1111_OLD, *DIFFUSIONDB, *INVOKEAI, *KOHYA)),
]


def refusal(name: str, schedule: str | None = None) -> str:
    with pytest.raises(ValueError, match=r"^is not (supported|known)") as error:
        resolve_sampler(name, schedule)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "schedule", "expected"),
    [
        ("DPM++ SDE Karras", None, "dpm++sde-karras"),
        ("DPM++ 2S a Karras", None, "dpm++2s-karras"),
        ("DPM++ 3M SDE Karras", None, "dpm++3m-sde-karras"),
        ("LMS Karras", None, "lms-karras"),
        ("DPM++ 2M SDE Exponential", None, "dpm++2m-sde-exponential"),
        ("DPM++ 2M SDE Heun", None, "dpm++2m-sde-heun"),
        ("dpm++ 2m karras", None, "dpm++2m-karras"),
        ("DPM++ 2M", None, "dpm++2m"),
        ("DPM++ 2M", "Automatic", "dpm++2m-karras"),
        ("DPM++ 2M SDE", "Automatic", "dpm++2m-sde-exponential"),
        ("DPM++ 2M Karras", "Automatic", "dpm++2m-karras"),
        ("DPM++ 2M Karras", "karras", "dpm++2m-karras"),
        ("Euler", "Automatic", "euler"),
        ("Euler", "SGM Uniform", "euler-trailing"),
        ("Euler", "Polyexponential", "euler-exponential"),
        ("Euler a", "Uniform", "euler_a"),
        ("Euler a", "Simple", "euler_a-trailing"),
        ("DPM2 a Karras", None, "kdpm2_a-karras"),
        ("dpmpp_2m_sde_gpu", "karras", "dpm++2m-sde-karras"),
        ("euler_ancestral", "normal", "euler_a"),
        ("uni_pc_bh2", "simple", "unipc-trailing"),
        ("ddim", "ddim_uniform", "ddim"),
        ("euler", "ddim_uniform", "euler-leading"),
        ("lcm", "sgm_uniform", "lcm"),
        ("PLMS", "Karras", "pndm"),
        ("k_lms", None, "lms"),
        ("k_dpm_2_ancestral", None, "kdpm2_a"),
        ("4", None, "euler_a"),
        ("dpmpp_2m_sde_k", None, "dpm++2m-sde-karras"),
        ("dpmsolver++", None, "dpm++2m"),
        ("dpmsingle", None, "dpm++2s"),
        ("K_EULER_ANCESTRAL", None, "euler_a"),
        ("EulerDiscreteScheduler", "karras", "euler-karras"),
        ("EulerDiscreteScheduler", None, "EulerDiscreteScheduler"),
    ],
)
def test_a_sampler_of_another_tool_is_a_scheduler(name: str, schedule: str | None, expected: str) -> None:
    assert resolve_sampler(name, schedule) == expected


@pytest.mark.parametrize(
    ("name", "schedule", "nearest"),
    [
        ("DPM fast", None, "dpm++2s"),
        ("DPM fast", "Karras", "dpm++2s-karras"),
        ("DPM adaptive", None, "dpm++2m-karras"),
        ("Restart", None, "heun-karras"),
        ("DDIM CFG++", None, "ddim"),
        ("dpmpp_2m_cfg_pp", "karras", "dpm++2m-karras"),
        ("Euler a", "Karras", "euler_a"),
        ("Euler", "Align Your Steps", "euler-karras"),
        ("DPM++ 2M Karas", None, "dpm++2m-karras"),
        ("9", None, "euler"),
    ],
)
def test_a_sampler_that_diffusers_lacks_is_refused_with_the_nearest(
    name: str, schedule: str | None, nearest: str
) -> None:
    assert re.search(rf" '?{re.escape(nearest)}('\?|,|$)", refusal(name, schedule))


def test_every_name_of_the_tools_is_a_scheduler_or_refused_with_one() -> None:
    found = {case: scheduler_or_nearest(*case) for case in EVERY}
    assert {case: name for case, name in found.items() if name not in schedulers.SHORT_NAMES} == {}


def scheduler_or_nearest(name: str, schedule: str | None) -> str:
    try:
        return resolve_sampler(name, schedule)
    except ValueError as error:
        return re.sub(r".*write (\S+?)(, the nearest)?$", r"\1", str(error))


def test_two_schedules_and_unknown_ones_are_refused_with_those_of_the_solver() -> None:
    assert refusal("DPM++ 2M Karras", "Exponential").endswith("write dpm++2m-karras or dpm++2m-exponential")
    assert refusal("Euler a", "bogus").endswith("write one of euler_a, euler_a-trailing, euler_a-leading")


def test_an_unknown_sampler_is_refused_with_the_solvers() -> None:
    assert "write one of ddim, ddpm" in refusal("nonsense")
    assert "write one of" in refusal("x" * 100_000)


def test_how_a_sampler_differs_is_known() -> None:
    assert find_sampler("DPM++ 2M Karras").near is None
    assert find_sampler("dpm++2s").near is None
    assert find_sampler("DPM++ 2S a").near == (
        "without the noise of each step, and one model evaluation a step instead of two"
    )


@pytest.mark.parametrize("name", schedulers.SHORT_NAMES)
def test_a_short_name_returns_from_automatic1111s_names(name: str) -> None:
    found = a1111_sampler(name, {})
    assert found is None or resolve_sampler(*found) == name
    assert (found is None) == name.startswith(
        ("ddpm", "deis", "dpm++3m", "dpmsolver", "edm", "flow", "ipndm", "sa_", "tcd")
    ) or name.startswith("dpm++3m-sde")


@pytest.mark.parametrize(
    ("scheduler", "options", "expected"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, ("DPM++ 2M", "Karras")),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, ("DPM++ 2M SDE", None)),
        ("euler", {"timestep_spacing": "trailing"}, ("Euler", "SGM Uniform")),
        ("euler", {"use_karras_sigmas": True, "timestep_spacing": "trailing"}, ("Euler", "Karras")),
        ("PNDMScheduler", {}, ("PLMS", None)),
        ("dpm++2m", {"solver_order": 3}, None),
        ("tcd", {}, None),
        (None, {}, None),
        ("RePaintScheduler", {}, None),
    ],
)
def test_a_scheduler_with_options_has_automatic1111s_names(
    scheduler: str | None, options: dict[str, object], expected: tuple[str, str | None] | None
) -> None:
    assert a1111_sampler(scheduler, options) == expected


def test_a_schedule_beside_a_scheduler_is_not_lost() -> None:
    check = RowCheck(ReadOptions(), Notes())
    row = check.row("line 1", {"prompt": "a cat", "scheduler": "euler", "schedule_type": "Karras"})
    assert isinstance(row, LocatedRow)
    assert row.row.scheduler == "euler-karras"
    check.row("line 2", {"prompt": "a cat", "sampler": "DPM++ SDE", "schedule": "Karras"})
    assert any("dpm++sde-karras, which differs: one model evaluation" in text for text in check.notes)


def test_a_job_with_a_sampler_of_another_tool_is_refused_with_our_name() -> None:
    with pytest.raises(ValidationError, match=r"of another tool; write dpm\+\+2m-karras"):
        Row(prompt="a cat", scheduler="DPM++ 2M Karras")
    with pytest.raises(ValidationError, match=r"is not supported; write heun-karras, the nearest"):
        Row(prompt="a cat", scheduler="Restart")
