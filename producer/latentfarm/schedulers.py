"""Short names of diffusers' noise schedulers.

A short name is a solver, such as ``dpm++2m``, or a solver with a schedule of noise levels, such as
``dpm++2m-karras``. ``samplers`` has the names of other tools. Imports no torch: the producer refuses unknown names at
submission.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from latentfarm.errors import InputError


@dataclass(frozen=True)
class SchedulerSpec:
    """A diffusers scheduler class and its config options."""

    class_name: str
    options: Mapping[str, object] = field(default_factory=dict)


_MULTISTEP, _SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
# a model's own config may have another algorithm and order: a name that means one of them sets it
_ODE, _SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
_SECOND, _THIRD = {"solver_order": 2}, {"solver_order": 3}
# with an odd number of steps, or with the last noise level 0, diffusers sets it too, and logs a warning each time
_LOWER_ORDER = {"lower_order_final": True}

#: the options of a schedule, by the end of a short name
SCHEDULES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "karras": {"use_karras_sigmas": True},
        "exponential": {"use_exponential_sigmas": True},
        "beta": {"use_beta_sigmas": True},
        "trailing": {"timestep_spacing": "trailing"},
        "leading": {"timestep_spacing": "leading"},
    }
)
_SIGMAS = ("karras", "exponential", "beta")
_SIGMA_OPTIONS = tuple(key for name in _SIGMAS for key in SCHEDULES[name])
_SPACINGS = ("trailing", "leading")
_ALL = (*_SIGMAS, *_SPACINGS)

#: solvers and the schedules that diffusers has for them
_SOLVERS: Mapping[str, tuple[SchedulerSpec, tuple[str, ...]]] = MappingProxyType(
    {
        "ddim": (SchedulerSpec("DDIMScheduler"), ("trailing",)),
        "ddpm": (SchedulerSpec("DDPMScheduler"), _SPACINGS),
        "deis": (SchedulerSpec("DEISMultistepScheduler"), _ALL),
        "dpm++2m": (SchedulerSpec(_MULTISTEP, {**_ODE, **_SECOND}), _ALL),
        "dpm++2m-sde": (SchedulerSpec(_MULTISTEP, {**_SDE, **_SECOND}), _ALL),
        "dpm++2m-sde-heun": (SchedulerSpec(_MULTISTEP, {**_SDE, **_SECOND, "solver_type": "heun"}), _ALL),
        "dpm++3m": (SchedulerSpec(_MULTISTEP, {**_ODE, **_THIRD}), _ALL),
        "dpm++3m-sde": (SchedulerSpec(_MULTISTEP, {**_SDE, **_THIRD}), _ALL),
        "dpm++2s": (SchedulerSpec(_SINGLESTEP, {**_ODE, **_SECOND, **_LOWER_ORDER}), _SIGMAS),
        "dpm++sde": (SchedulerSpec(_SINGLESTEP, {**_SDE, **_SECOND, **_LOWER_ORDER}), _SIGMAS),
        # diffusers refuses the last noise level 0 for this algorithm
        "dpmsolver": (
            SchedulerSpec(_MULTISTEP, {"algorithm_type": "dpmsolver", **_SECOND, "final_sigmas_type": "sigma_min"}),
            _ALL,
        ),
        "euler": (SchedulerSpec("EulerDiscreteScheduler"), _ALL),
        "euler_a": (SchedulerSpec("EulerAncestralDiscreteScheduler"), _SPACINGS),
        "heun": (SchedulerSpec("HeunDiscreteScheduler"), _ALL),
        "ipndm": (SchedulerSpec("IPNDMScheduler"), ()),
        "kdpm2": (SchedulerSpec("KDPM2DiscreteScheduler"), _ALL),
        "kdpm2_a": (SchedulerSpec("KDPM2AncestralDiscreteScheduler"), _ALL),
        "lcm": (SchedulerSpec("LCMScheduler"), ()),
        "lms": (SchedulerSpec("LMSDiscreteScheduler"), _ALL),
        # without this option, PNDM's Runge-Kutta start needs more history than a sampling plan has
        "pndm": (SchedulerSpec("PNDMScheduler", {"skip_prk_steps": True}), ()),
        "sa_solver": (SchedulerSpec("SASolverScheduler", {"algorithm_type": "data_prediction"}), _ALL),
        "tcd": (SchedulerSpec("TCDScheduler"), ()),
        "unipc": (SchedulerSpec("UniPCMultistepScheduler"), _ALL),
        "edm_euler": (SchedulerSpec("EDMEulerScheduler"), ()),
        "flow_euler": (SchedulerSpec("FlowMatchEulerDiscreteScheduler"), _SIGMAS),
        "flow_heun": (SchedulerSpec("FlowMatchHeunDiscreteScheduler"), ()),
    }
)


def _short_names() -> Iterator[tuple[str, SchedulerSpec]]:
    for solver, (spec, schedules) in _SOLVERS.items():
        yield solver, spec
        for schedule in schedules:
            # a model's own config may have Karras's, which diffusers prefers or refuses beside another schedule
            off = {"use_karras_sigmas": False} if "karras" in schedules else {}
            options = {**spec.options, **off, **SCHEDULES[schedule]}
            yield f"{solver}-{schedule}", SchedulerSpec(spec.class_name, options)


#: short names without a schedule
SOLVERS = tuple(_SOLVERS)

#: schedulers by short name
SHORT_NAMES: Mapping[str, SchedulerSpec] = MappingProxyType(dict(_short_names()))

#: diffusers classes with a tested sampling plan
CLASS_NAMES = frozenset(name.class_name for name in SHORT_NAMES.values())

#: classes for flow-matching models only
_FLOW_ONLY = frozenset(name for name in CLASS_NAMES if name.startswith("FlowMatch"))
#: classes that also have the noise levels of flow matching, as ``use_flow_sigmas``
_WITH_FLOW_SIGMAS = frozenset(
    {
        _MULTISTEP,
        _SINGLESTEP,
        "DEISMultistepScheduler",
        "SASolverScheduler",
        "UniPCMultistepScheduler",
    }
)


def list_names() -> str:
    """Return the short names for a message."""
    return f"{', '.join(SOLVERS)}; most of them may end in -{', -'.join(SCHEDULES)}"


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
    close = get_close_matches(name, known, n=1) if len(name) < 60 else []
    hint = f"did you mean {close[0]!r}?" if close else f"write one of {list_names()}"
    raise InputError(f"scheduler {name!r} is not known; {hint}")


def is_flow(scheduler_config: Mapping[str, Any]) -> bool:
    """Return whether the model of a scheduler config was trained by flow matching (arXiv 2210.02747)."""
    own = str(scheduler_config.get("_class_name"))
    return own in _FLOW_ONLY or scheduler_config.get("prediction_type") == "flow_prediction"


def fit(
    spec: SchedulerSpec, scheduler_config: Mapping[str, Any], wanted: Mapping[str, object] = MappingProxyType({})
) -> SchedulerSpec:
    """Return a scheduler with the options that a model needs, given the model's own scheduler config.

    ``wanted`` are a job's options, which override those returned.

    A solver of a flow-matching model gets the noise levels of flow matching, with the shift of the model's own. Other
    noise levels of the model's config, such as Karras's, are off where the scheduler has some: diffusers refuses two.

    Raises:
        InputError: the scheduler does not fit the model.
    """
    check_fit(spec, flow=is_flow(scheduler_config))
    flow: dict[str, object] = {}
    if is_flow(scheduler_config) and spec.class_name in _WITH_FLOW_SIGMAS:
        shift = scheduler_config.get("flow_shift", scheduler_config.get("shift", 1.0))
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    options = {**flow, **spec.options}
    if not any({**options, **wanted}.get(key) for key in ("use_flow_sigmas", *_SIGMA_OPTIONS)):
        return spec
    off = {key: False for key in _SIGMA_OPTIONS if scheduler_config.get(key)}
    return SchedulerSpec(spec.class_name, {**off, **options})


def check_fit(spec: SchedulerSpec, *, flow: bool) -> None:
    """Check that a scheduler fits a model that was trained by flow matching, or one that was not.

    Raises:
        InputError: it does not fit.
    """
    if not flow and spec.class_name in _FLOW_ONLY:
        raise InputError(
            f"{spec.class_name} is for flow-matching models, and this model is none; "
            f"write one of {', '.join(_solvers(flow=False))}"
        )
    if not flow or spec.class_name in _FLOW_ONLY:
        return
    other = [name for name, options in SCHEDULES.items() if options.keys() & {k for k, v in spec.options.items() if v}]
    # diffusers refuses flow matching for this algorithm
    noise_only = spec.options.get("algorithm_type") == "dpmsolver"
    if spec.class_name not in _WITH_FLOW_SIGMAS or other or noise_only:
        raise InputError(
            f"{spec.class_name}{' with ' + other[0] if other else ''} does not fit a flow-matching model; "
            f"write one of {', '.join(_solvers(flow=True))}"
        )


def _solvers(*, flow: bool) -> list[str]:
    """Return the solvers that fit a kind of model."""
    kinds = _FLOW_ONLY | _WITH_FLOW_SIGMAS if flow else CLASS_NAMES - _FLOW_ONLY
    return [
        name for name, (spec, _) in _SOLVERS.items() if spec.class_name in kinds and (name != "dpmsolver" or not flow)
    ]


def write_out(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request with a short name of a scheduler as its class and options, as the receipt will have it."""
    name = request.get("scheduler") or ""
    if name not in SHORT_NAMES:
        return request
    found = SHORT_NAMES[name]
    options = {**found.options, **request.get("scheduler_options", {})}
    return {**request, "scheduler": found.class_name, "scheduler_options": options}
