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
class SchedulerSpec:
    """A diffusers scheduler class and its config options."""

    class_name: str
    options: Mapping[str, object] = field(default_factory=dict)


def _short_names() -> dict[str, SchedulerSpec]:
    karras = {"use_karras_sigmas": True}
    dpm = "DPMSolverMultistepScheduler"
    sde = {"algorithm_type": "sde-dpmsolver++"}
    return {
        "ddim": SchedulerSpec("DDIMScheduler"),
        "ddpm": SchedulerSpec("DDPMScheduler"),
        "deis": SchedulerSpec("DEISMultistepScheduler"),
        "dpm++2m": SchedulerSpec(dpm),
        "dpm++2m-karras": SchedulerSpec(dpm, karras),
        "dpm++2m-sde": SchedulerSpec(dpm, sde),
        "dpm++2m-sde-karras": SchedulerSpec(dpm, {**sde, **karras}),
        "dpm++3m": SchedulerSpec(dpm, {"solver_order": 3}),
        "dpm++2s": SchedulerSpec("DPMSolverSinglestepScheduler"),
        "euler": SchedulerSpec("EulerDiscreteScheduler"),
        "euler-karras": SchedulerSpec("EulerDiscreteScheduler", karras),
        "euler_a": SchedulerSpec("EulerAncestralDiscreteScheduler"),
        "heun": SchedulerSpec("HeunDiscreteScheduler"),
        "ipndm": SchedulerSpec("IPNDMScheduler"),
        "kdpm2": SchedulerSpec("KDPM2DiscreteScheduler"),
        "kdpm2_a": SchedulerSpec("KDPM2AncestralDiscreteScheduler"),
        "lcm": SchedulerSpec("LCMScheduler"),
        "lms": SchedulerSpec("LMSDiscreteScheduler"),
        # without this option, PNDM's Runge-Kutta start needs more history than a sampling plan has
        "pndm": SchedulerSpec("PNDMScheduler", {"skip_prk_steps": True}),
        "sa_solver": SchedulerSpec("SASolverScheduler"),
        "tcd": SchedulerSpec("TCDScheduler"),
        "unipc": SchedulerSpec("UniPCMultistepScheduler"),
        "edm_euler": SchedulerSpec("EDMEulerScheduler"),
        "flow_euler": SchedulerSpec("FlowMatchEulerDiscreteScheduler"),
    }


#: schedulers by short name; ``--help`` lists the keys
SHORT_NAMES: Mapping[str, SchedulerSpec] = MappingProxyType(_short_names())

#: diffusers classes with a tested sampling plan
CLASS_NAMES = frozenset(name.class_name for name in SHORT_NAMES.values())


def resolve(name: str) -> SchedulerSpec:
    """Return the scheduler of a short name or a diffusers class name.

    Raises:
        InputError: the name is unknown.
    """
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    if name in CLASS_NAMES:
        return SchedulerSpec(name)
    known = [*SHORT_NAMES, *sorted(CLASS_NAMES)]
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(SHORT_NAMES)}"
    raise InputError(f"scheduler {name!r} is not known; {hint}")
