"""Short names of diffusers' noise schedulers.

Imports no torch: the producer refuses unknown names at submission.
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
    """A diffusers scheduler class and its config options."""

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
        # without this option, PNDM's Runge-Kutta start needs more history than a sampling plan has
        "pndm": SchedulerName("PNDMScheduler", {"skip_prk_steps": True}),
        "sa_solver": SchedulerName("SASolverScheduler"),
        "tcd": SchedulerName("TCDScheduler"),
        "unipc": SchedulerName("UniPCMultistepScheduler"),
        "edm_euler": SchedulerName("EDMEulerScheduler"),
        "flow_euler": SchedulerName("FlowMatchEulerDiscreteScheduler"),
    }


#: schedulers by short name; ``--help`` lists the keys
SHORT_NAMES: Mapping[str, SchedulerName] = MappingProxyType(_short_names())

#: diffusers classes with a tested sampling plan
CLASS_NAMES = frozenset(name.class_name for name in SHORT_NAMES.values())


def resolve(name: str) -> SchedulerName:
    """Return the scheduler of a short name or a diffusers class name.

    Raises:
        InputError: the name is unknown.
    """
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    if name in CLASS_NAMES:
        return SchedulerName(name)
    known = [*SHORT_NAMES, *sorted(CLASS_NAMES)]
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(SHORT_NAMES)}"
    raise InputError(f"scheduler {name!r} is not known; {hint}")
