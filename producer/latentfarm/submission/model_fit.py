"""Check fields of rows against what workers have announced of their model."""

from __future__ import annotations

from functools import lru_cache

from latentfarm import schedulers
from latentfarm.adapter_kind import AdapterKind, describe_unknown
from latentfarm.errors import InputError
from latentfarm.job import Defaults
from latentfarm.limits import MAX_SIDE, MIN_SIDE
from latentfarm.model_facts import ModelFacts

#: the pipeline of the models that a refiner may end
_REFINED = "StableDiffusionXLPipeline"


def misfits(fields: Defaults, facts: ModelFacts) -> list[tuple[str, str]]:
    """Return field and text, with value and cure, of each field of a row or of defaults that does not fit the model."""
    found = [
        (name, f"{name} {side} is not a multiple of {facts.pixel_multiple}; write {_nearest(side, facts)}")
        for name, side in (("width", fields.width), ("height", fields.height))
        if side is not None and side % facts.pixel_multiple
    ]
    if fields.scheduler is not None and (problem := _scheduler_problem(fields.scheduler, flow=facts.flow)):
        found.append(("scheduler", f"scheduler {fields.scheduler!r}: {problem}"))
    if fields.clip_skip is not None and fields.clip_skip > facts.max_clip_skip:
        cure = f"write 0 to {facts.max_clip_skip}" if facts.max_clip_skip else "write 0"
        found.append(("clip_skip", f"clip_skip {fields.clip_skip} leaves too little of the text encoder; {cure}"))
    for name in ("image", "mask_image"):
        if getattr(fields, name) is not None and facts.inputs is not None and name not in facts.inputs:
            text = f"{name} has no use: {facts.pipeline} takes none"
            found.append((name, f"{text}; remove it, or use a model that can"))
    if fields.refiner is not None and facts.pipeline != _REFINED:
        text = f"refiner has no use: {facts.pipeline} takes none"
        found.append(("refiner", f"{text}; remove it, or use a model of Stable Diffusion XL"))
    found += _unknown_adapters(fields, facts)
    if fields.safety not in (None, "off") and facts.safety_checker is False:
        text = f"safety is {fields.safety!r}, and the model's workers have no safety checker"
        found.append(("safety", f"{text}; set LATENTFARM_SAFETY_CHECKER for them, or write off"))
    known = facts.scorers or ()
    found += [
        ("scorers", f"scorer {name!r} is unknown: the model's workers have {', '.join(known)}; write one of them")
        for name in dict.fromkeys(fields.scorers or ())
        if facts.scorers is not None and name not in known
    ]
    return found


def check_defaults_fit(defaults: Defaults, facts: ModelFacts) -> None:
    """Check a batch's defaults.

    Raises:
        InputError: they do not fit the model.
    """
    if found := misfits(defaults, facts):
        raise InputError("\n".join(f"options: {text}" for _, text in found), field=found[0][0])


def _unknown_adapters(fields: Defaults, facts: ModelFacts) -> list[tuple[str, str]]:
    """Return field and text of each name of an adapter that the model's workers lack."""
    if facts.adapters is None:
        return []
    loras = tuple(use.name for use in fields.loras or ())
    named = (
        ("loras", AdapterKind.LORA, loras),
        ("controlnet", AdapterKind.CONTROLNET, fields.controlnet or ()),
        ("ip_adapter", AdapterKind.IP_ADAPTER, fields.ip_adapter or ()),
        ("refiner", AdapterKind.REFINER, () if fields.refiner is None else (fields.refiner,)),
    )
    return [
        (field, describe_unknown(kind, name, facts.adapters.get(kind, ())))
        for field, kind, names in named
        for name in dict.fromkeys(names)
        if name not in facts.adapters.get(kind, ())
    ]


def _nearest(side: int, facts: ModelFacts) -> str:
    """Return the nearest sides that fit, below and above."""
    below = side - side % facts.pixel_multiple
    near = (below, below + facts.pixel_multiple)
    return " or ".join(str(each) for each in near if MIN_SIDE <= each <= MAX_SIDE)


# a name is in many rows
@lru_cache(maxsize=512)
def _scheduler_problem(name: str, *, flow: bool) -> str:
    try:
        schedulers.check_fit(schedulers.resolve(name), flow=flow)
    except InputError as error:
        return str(error)
    return ""
