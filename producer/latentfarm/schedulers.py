"""The names under which a job may ask for one of diffusers' schedulers.

No torch here: the producer refuses an unknown name at submission, before a worker has seen the job.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING

from latentfarm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class SchedulerName:
    """A diffusers scheduler class and the options that a short name stands for."""

    class_name: str
    options: Mapping[str, object] = field(default_factory=dict)


def _short_names() -> dict[str, SchedulerName]:
    karras = {"use_karras_sigmas": True}
    dpm = "DPMSolverMultistepScheduler"
    sde = {"algorithm_type": "sde-dpmsolver++"}
    return {
        "ddim": SchedulerName("DDIMScheduler"),
        "ddpm": SchedulerName("DDPMScheduler"),
        "deis": SchedulerName("DEISMultistepScheduler"),
        "dpm++2m": SchedulerName(dpm),
        "dpm++2m-karras": SchedulerName(dpm, karras),
        "dpm++2m-sde": SchedulerName(dpm, sde),
        "dpm++2m-sde-karras": SchedulerName(dpm, {**sde, **karras}),
        "dpm++3m": SchedulerName(dpm, {"solver_order": 3}),
        "dpm++2s": SchedulerName("DPMSolverSinglestepScheduler"),
        "euler": SchedulerName("EulerDiscreteScheduler"),
        "euler-karras": SchedulerName("EulerDiscreteScheduler", karras),
        "euler_a": SchedulerName("EulerAncestralDiscreteScheduler"),
        "heun": SchedulerName("HeunDiscreteScheduler"),
        "ipndm": SchedulerName("IPNDMScheduler"),
        "kdpm2": SchedulerName("KDPM2DiscreteScheduler"),
        "kdpm2_a": SchedulerName("KDPM2AncestralDiscreteScheduler"),
        "lcm": SchedulerName("LCMScheduler"),
        "lms": SchedulerName("LMSDiscreteScheduler"),
        # with its Runge-Kutta start, PNDM looks back further than any plan
        "pndm": SchedulerName("PNDMScheduler", {"skip_prk_steps": True}),
        "sa_solver": SchedulerName("SASolverScheduler"),
        "tcd": SchedulerName("TCDScheduler"),
        "unipc": SchedulerName("UniPCMultistepScheduler"),
        "edm_euler": SchedulerName("EDMEulerScheduler"),
        "flow_euler": SchedulerName("FlowMatchEulerDiscreteScheduler"),
    }


#: short name -> what it stands for; ``--help`` prints the keys
SHORT_NAMES: Mapping[str, SchedulerName] = MappingProxyType(_short_names())

#: diffusers class names that the engine has a tested sampling plan for
CLASS_NAMES = frozenset(name.class_name for name in SHORT_NAMES.values())


def resolve(name: str) -> SchedulerName:
    """Return what ``name`` (a short name or a diffusers class name) stands for.

    Raises:
        InputError: the name is neither.
    """
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    if name in CLASS_NAMES:
        return SchedulerName(name)
    known = [*SHORT_NAMES, *sorted(CLASS_NAMES)]
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(SHORT_NAMES)}"
    raise InputError(f"scheduler {name!r} is not known; {hint}")
