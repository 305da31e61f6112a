"""Check the fields of a row that belong together: those of input images, adapters and a second stage.

A row may have one of them and the batch's defaults another, so each row is checked together with the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentfarm.edit_fields import DEFAULT_MASKED_STRENGTH, DEFAULT_STRENGTH, EDIT_FIELDS, EditFields, find_conflict
from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row
from latentfarm.limits import MAX_SIDE
from latentfarm.model_facts import ModelFacts, model_defaults
from latentfarm.step_counts import steps_made
from latentfarm.submission.prompts import Notes
from latentfarm.submission.prompts.rows import abbreviate

#: fields without effect unless one of others is set, and what sets it
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "strength": ("image",),
    "mask_blur": ("mask_image",),
    "resize": ("image", "control_image"),
    "controlnet_conditioning_scale": ("controlnet",),
    "control_guidance_start": ("controlnet",),
    "control_guidance_end": ("controlnet",),
    "control_preprocessor": ("controlnet",),
    "ip_adapter_scale": ("ip_adapter",),
    "hires_steps": ("hires_scale",),
    "hires_strength": ("hires_scale",),
    "hires_upscaler": ("hires_scale",),
    "refiner_start": ("refiner",),
}
_NAMES = frozenset(EDIT_FIELDS)


def edits(fields: Defaults) -> dict[str, Any]:
    """Return the fields of a row, or of defaults, that a text alone does not have."""
    if fields.model_fields_set.isdisjoint(_NAMES):
        return {}
    return {name: value for name in EDIT_FIELDS if (value := getattr(fields, name)) is not None}


def check_edits(row: Row, defaults: Defaults, facts: ModelFacts | None, notes: Notes) -> None:
    """Check that the fields of a row fit each other.

    Args:
        row: a row as it is enqueued, but for the defaults.
        defaults: the fields of rows that do not set them.
        facts: what is known of the model, for its steps.
        notes: counts the defaults that have no effect on the row.

    Raises:
        InputError: they do not; the text has field, value and cure.
    """
    own, shared = edits(row), edits(defaults)
    for name in facts.required_inputs if facts else ():
        if name not in own and name not in shared:
            text = f"{name} is missing, and the model only paints parts of images; write image and mask_image"
            raise InputError(text, field=name)
    if not own and not shared:
        return
    found = {**shared, **own}
    if problem := find_conflict(found):
        raise InputError(problem, field=problem.partition(" ")[0])
    for name, others in _NEEDS.items():
        if name not in found or any(found.get(other) is not None for other in others):
            continue
        if name in own:
            missing = " or ".join(others)
            raise InputError(
                f"{name} {abbreviate(own[name])} has no {missing}; write {missing}, or remove it", field=name
            )
        notes.add(f"the default of {name} has no effect on rows without {' and '.join(others)}")
    _check_loras(found)
    _check_guidance(found)
    _check_steps({**model_defaults(facts), **defaults.given(), **row.given()}, flow=bool(facts and facts.flow))
    _check_second_size({**defaults.given(), **row.given()}, facts)


def count_steps(fields: Mapping[str, Any], *, flow: bool = False) -> tuple[int, int]:
    """Return the steps that are made for an image, and those of its second stage, 0 without one.

    Args:
        fields: those of a row and of its defaults.
        flow: whether the model was trained by flow matching.
    """
    steps = int(fields["num_inference_steps"])
    made = steps if fields.get("image") is None else steps_made(steps, _strength(fields), flow=flow)
    if fields.get("hires_scale") is None:
        return made, 0
    strength = _given(fields, "hires_strength")
    return made, steps_made(fields.get("hires_steps") or steps, strength, flow=flow)


def _check_loras(found: Mapping[str, Any]) -> None:
    names = [lora.name for lora in found.get("loras", ())]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"loras has {twice} twice; write it once", field="loras")


def _check_guidance(found: Mapping[str, Any]) -> None:
    starts, ends = (_given(found, f"control_guidance_{end}") for end in ("start", "end"))
    count = max(len(starts), len(ends))
    # a list of one holds for all; others are of one length by now
    for place in range(count):
        start, end = starts[place % len(starts)], ends[place % len(ends)]
        if start >= end:
            text = f"control_guidance_start {start:g} is not before control_guidance_end {end:g}; write a smaller one"
            raise InputError(text, field="control_guidance_start")


def _check_steps(fields: Mapping[str, Any], *, flow: bool) -> None:
    made, second = count_steps(fields, flow=flow)
    steps = int(fields["num_inference_steps"])
    if not made:
        raise _no_step("strength", _strength(fields), steps)
    if fields.get("hires_scale") is not None and not second:
        raise _no_step("hires_strength", _given(fields, "hires_strength"), fields.get("hires_steps") or steps)


def _check_second_size(fields: Mapping[str, Any], facts: ModelFacts | None) -> None:
    scale = fields.get("hires_scale") or 1.0
    for name in ("width", "height"):
        side = fields.get(name) or (getattr(facts, f"native_{name}") if facts else 0)
        if int(side * scale) > MAX_SIDE:
            text = f"hires_scale {scale:g} makes a {name} of {side} pixels {int(side * scale)}, more than {MAX_SIDE}"
            raise InputError(f"{text}; write {int(100 * MAX_SIDE / side) / 100:g} or less", field="hires_scale")


def _no_step(field: str, strength: float, steps: int) -> InputError:
    least = next(share for share in range(1, 101) if steps_made(steps, share / 100)) / 100
    noun = "step" if steps == 1 else "steps"
    text = f"{field} {strength:g} of {steps} {noun} makes no step; write {least:g} or more, or more steps"
    return InputError(text, field=field)


def _strength(fields: Mapping[str, Any]) -> float:
    default = DEFAULT_STRENGTH if fields.get("mask_image") is None else DEFAULT_MASKED_STRENGTH
    return float(fields.get("strength") or default)


def _given(fields: Mapping[str, Any], name: str) -> Any:
    """Return a field, or its default."""
    value = fields.get(name)
    return EditFields.model_fields[name].default if value is None else value
