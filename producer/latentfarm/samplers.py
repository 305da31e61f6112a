"""Names of samplers in other tools, and the schedulers that they are here.

Sources: AUTOMATIC1111 1.10 (``modules/sd_samplers_kdiffusion.py``, ``sd_samplers_timesteps.py``,
``sd_schedulers.py``), ComfyUI (``comfy/samplers.py``), DiffusionDB (its data card and loader), InvokeAI, kohya's
sd-scripts (``get_my_scheduler``); and diffusers' own table of the schedulers that correspond ("Schedulers" in its API
reference).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import NamedTuple

from latentfarm import schedulers
from latentfarm.errors import InputError

_SEPARATORS = re.compile(r"[\s_\-()/:,]+")
_MAX_CHARACTERS = 80


class Sampler(NamedTuple):
    """The scheduler of a sampler.

    Attributes:
        scheduler: its short name, or a diffusers class name that was given.
        near: how the sampler differs; None if diffusers has the same.
    """

    scheduler: str
    near: str | None = None


#: AUTOMATIC1111's names, by solver
A1111_SAMPLERS: Mapping[str, str] = MappingProxyType(
    {
        "ddim": "DDIM",
        "dpm++2m": "DPM++ 2M",
        "dpm++2m-sde": "DPM++ 2M SDE",
        "dpm++2m-sde-heun": "DPM++ 2M SDE Heun",
        "dpm++3m-sde": "DPM++ 3M SDE",
        "dpm++2s": "DPM++ 2S a",
        "dpm++sde": "DPM++ SDE",
        "euler": "Euler",
        "euler_a": "Euler a",
        "heun": "Heun",
        "kdpm2": "DPM2",
        "kdpm2_a": "DPM2 a",
        "lcm": "LCM",
        "lms": "LMS",
        "pndm": "PLMS",
        "unipc": "UniPC",
    }
)
#: AUTOMATIC1111's names of schedule types, by the end of a short name
A1111_SCHEDULES: Mapping[str, str] = MappingProxyType(
    {
        "karras": "Karras",
        "exponential": "Exponential",
        "beta": "Beta",
        "trailing": "SGM Uniform",
        "leading": "DDIM",
    }
)
#: what AUTOMATIC1111's schedule type "Automatic" is; for the others it is "Uniform"
A1111_AUTOMATIC: Mapping[str, str] = MappingProxyType(
    {
        "dpm++2m": "karras",
        "dpm++sde": "karras",
        "dpm++2s": "karras",
        "kdpm2": "karras",
        "kdpm2_a": "karras",
        "dpm++2m-sde": "exponential",
        "dpm++2m-sde-heun": "exponential",
        "dpm++3m-sde": "exponential",
    }
)

#: other names, as ``_compact`` returns them, by solver
_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ddim": ("1",),
        "deis": ("deismultistep",),
        "dpm++2m": ("dpmsolverpp", "dpmsolverpp2m", "dpmsolvermultistep"),
        "dpm++2s": ("dpmsingle", "dpmsolversinglestep", "dpmpp2sa"),
        "dpm++sde": ("dpmsolversde",),
        "euler": ("3", "eulerdiscrete"),
        "euler_a": ("4", "euleradiscrete"),
        "heun": ("5", "heundiscrete"),
        "kdpm2": ("6", "dpm2", "kdpm2discrete"),
        "kdpm2_a": ("7", "dpm2a", "kdpm2adiscrete"),
        "lms": ("8", "lmsdiscrete"),
        "pndm": ("2", "plms"),
        "unipc": ("unipcbh1", "unipcbh2", "unipcmultistep"),
        "flow_euler": ("flowmatcheuler", "eulerflowmatch"),
    }
)
#: samplers that diffusers lacks, as ``_compact`` returns them, and the nearest short name; 9 is DiffusionDB's "others"
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "dpmfast": "dpm++2s",
        "dpmadaptive": "dpm++2m-karras",
        "dpmad": "dpm++2m-karras",
        "restart": "heun-karras",
        "heunpp2": "heun",
        "expheun2x0": "dpm++2s",
        "expheun2x0sde": "dpm++sde",
        "resmultistep": "dpm++2m",
        "resmultistepa": "dpm++2m-sde",
        "gradientestimation": "euler",
        "ersde": "dpm++3m-sde",
        "seeds2": "dpm++sde",
        "seeds3": "dpm++sde",
        "sasolverpece": "sa_solver",
        "ipndmv": "lms",
        "9": "euler",
        "others": "euler",
    }
)

#: schedules as other tools name them, by ``_words``; an empty text for the usual one, None for one that diffusers lacks
_SCHEDULE_NAMES: Mapping[str, str | None] = MappingProxyType(
    {
        "automatic": "",
        "default": "",
        "discrete": "",
        "native": "",
        "none": "",
        "normal": "",
        "uniform": "",
        "karras": "karras",
        "ka": "karras",
        "k": "karras",
        "exponential": "exponential",
        "exp": "exponential",
        # with rho 1, the default
        "polyexponential": "exponential",
        "beta": "beta",
        "simple": "trailing",
        "sgm uniform": "trailing",
        "sgmuniform": "trailing",
        "trailing": "trailing",
        "ddim": "leading",
        "ddim uniform": "leading",
        "leading": "leading",
        "align your steps": None,
        "ays": None,
        "karras exponential": None,
        "kl optimal": None,
        "linear quadratic": None,
    }
)
#: the longest first, because "sgm uniform" ends in "uniform"
_ENDS = sorted((name for name in _SCHEDULE_NAMES if name not in {"ddim", "none"}), key=len, reverse=True)

#: schedules that make no difference: the solver has these timesteps itself; AUTOMATIC1111's PLMS uses no schedule
_OWN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"ddim": ("leading",), "lcm": ("trailing",), "tcd": ("trailing",), "pndm": tuple(A1111_SCHEDULES)}
)
#: values of a schedule's field that choose none
_UNSET = frozenset({"", "automatic", "default", "none"})

_NEAR_SOLVERS: Mapping[str, str] = MappingProxyType(
    {
        "deis": "of order 2",
        "dpm++sde": "one model evaluation a step instead of two",
        "ipndm": "diffusers has its own noise levels for it",
        "unipc": "of order 2 and variant bh2",
    }
)
_NEAR_NAMES: Mapping[str, str] = MappingProxyType(
    {"dpmpp2sa": "without the noise of each step, and one model evaluation a step instead of two"}
)


def _words(name: str) -> str:
    """Return a name in lower case, its words separated by spaces."""
    return _SEPARATORS.sub(" ", name.lower().replace("++", "pp").replace("+", "p")).strip()


def _compact(words: str) -> str:
    """Return words without what the tools write differently: ``k_``, ``ancestral``, ``_gpu``, spaces."""
    words = words.removeprefix("sample ").removeprefix("k ").removesuffix(" gpu").removesuffix(" scheduler")
    words = words.removesuffix("scheduler").removesuffix(" gpu")
    return words.replace("ancestral", "a").replace(" ", "")


def _by_compact_name() -> Mapping[str, str]:
    found = {_compact(_words(solver)): solver for solver in schedulers.SOLVERS}
    found |= {_compact(_words(name)): solver for solver, name in A1111_SAMPLERS.items()}
    return MappingProxyType(found | {name: solver for solver, names in _NAMES.items() for name in names})


_SOLVERS = _by_compact_name()


def resolve_sampler(name: str, schedule: str | None = None) -> str:
    """Return the short name of the scheduler that a sampler of another tool is.

    Args:
        name: the sampler, such as ``DPM++ 2M Karras``, ``dpmpp_2m``, ``k_lms``; or a scheduler as in ``schedulers``.
        schedule: AUTOMATIC1111's "schedule type", or ComfyUI's "scheduler".

    Raises:
        ValueError: diffusers has no such sampler, or not with this schedule; the text is problem and cure, with the
            nearest that it has.
    """
    return find_sampler(name, schedule).scheduler


def find_sampler(name: str, schedule: str | None = None) -> Sampler:
    """Return the scheduler of a sampler and how it differs. Raises like ``resolve_sampler``."""
    if schedule is None and (name in schedulers.SHORT_NAMES or name in schedulers.CLASS_NAMES):
        return Sampler(name)
    words, end = _split(_words(name))
    compact = _compact(words)
    given = _words(schedule or "")
    solver = _SOLVERS.get(compact)
    if solver is None:
        raise ValueError(_nearest(compact, end or given))
    wanted = _schedule(solver, end, given)
    if wanted and _with(solver, wanted) == solver:
        raise ValueError(f"is not supported: diffusers has no {solver} with this schedule; write {solver}")
    return Sampler(_with(solver, wanted), _NEAR_NAMES.get(compact, _NEAR_SOLVERS.get(solver)))


def a1111_sampler(scheduler: str | None, options: Mapping[str, object]) -> tuple[str, str | None] | None:
    """Return AUTOMATIC1111's names of a scheduler: the sampler and, if it is not the usual one, the schedule type.

    Args:
        scheduler: a short name or a diffusers class; None for an unknown one.
        options: the job's ``scheduler_options``.

    Returns:
        The names, or None if AUTOMATIC1111 has no such sampler.
    """
    try:
        spec = schedulers.resolve(scheduler or "")
    except InputError:
        return None
    merged = {**spec.options, **options}
    solver = next((each for each in A1111_SAMPLERS if _is_solver(each, spec.class_name, merged)), None)
    if solver is None:
        return None
    # with two schedules, diffusers takes the noise levels
    found = (end for end, flags in schedulers.SCHEDULES.items() if flags.items() <= merged.items())
    schedule = next(found, "")
    return A1111_SAMPLERS[solver], A1111_SCHEDULES[schedule] if _with(solver, schedule) != solver else None


def _is_solver(solver: str, class_name: str, options: Mapping[str, object]) -> bool:
    spec = schedulers.SHORT_NAMES[solver]
    return spec.class_name == class_name and _algorithm(spec.options) == _algorithm(options)


def _algorithm(options: Mapping[str, object]) -> tuple[object, ...]:
    """Return the options that make another solver of a class."""
    return (
        options.get("algorithm_type", "dpmsolver++"),
        options.get("solver_order", 2),
        options.get("solver_type") == "heun",
    )


def _split(words: str) -> tuple[str, str]:
    """Return the sampler and the schedule that a name ends in."""
    for end in _ENDS:
        if words.endswith(f" {end}"):
            return words.removesuffix(end).strip(), end
    return words, ""


def _schedule(solver: str, end: str, given: str) -> str:
    """Return the end of the short name, or an empty text for the usual schedule.

    ``end`` is the schedule in the sampler's name, and ``given`` the other tool's own field.
    """
    for name in (end, given):
        if name and name not in _SCHEDULE_NAMES:
            raise ValueError(f"is not supported: its schedule is not known; write one of {', '.join(_names(solver))}")
        if name and _SCHEDULE_NAMES[name] is None:
            raise ValueError(f"is not supported: diffusers has no such schedule; write {_with(solver, 'karras')}")
    first, second = _SCHEDULE_NAMES.get(end) or "", _SCHEDULE_NAMES.get(given) or ""
    if end and given not in _UNSET and second != first:
        both = f"{_with(solver, first)} or {_with(solver, second)}"
        raise ValueError(f"is not supported: it names two schedules; write {both}")
    if given == "automatic" and not end:
        return A1111_AUTOMATIC.get(solver, "")
    found = first or second
    return "" if found in _OWN.get(solver, ()) else found


def _names(solver: str) -> list[str]:
    """Return the short names of a solver."""
    return [solver, *(f"{solver}-{end}" for end in schedulers.SCHEDULES if _with(solver, end) != solver)]


def _with(solver: str, schedule: str) -> str:
    """Return the short name with a schedule, or without, if diffusers does not have it."""
    name = f"{solver}-{schedule}"
    return name if name in schedulers.SHORT_NAMES else solver


def _nearest(compact: str, schedule: str) -> str:
    """Return problem and cure for a sampler that diffusers lacks."""
    base, end = compact.removesuffix("cfgpp"), _SCHEDULE_NAMES.get(schedule) or ""
    if base in _REFUSED:
        return f"is not supported; write {_with(_REFUSED[base], end)}, the nearest"
    if base in _SOLVERS:
        return f"is not supported; write {_with(_SOLVERS[base], end)}, the nearest"
    known = {_compact(_words(name)): name for name in schedulers.SHORT_NAMES}
    known |= {f"{name}{end}": _with(solver, end) for name, solver in _SOLVERS.items() for end in schedulers.SCHEDULES}
    known |= _SOLVERS
    close = get_close_matches(compact, known, n=1) if len(compact) < _MAX_CHARACTERS else []
    cure = f"did you mean {known[close[0]]!r}?" if close else f"write one of {schedulers.list_names()}"
    return f"is not known; {cure}"
