"""What AUTOMATIC1111 writes for images: inputs in base64, the strength, two stages and the script ControlNet.

What ``denoising_strength`` and ``hr_scale`` mean depends on other fields of a row, so they are read when all are known.

Sources: the web UI's ``modules/processing.py`` and ``modules/api/models.py``; sd-webui-controlnet's
``internal_controlnet/args.py`` and its wiki page "API".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from latentfarm.submission.prompts.notes import Notes
from latentfarm.submission.prompts.off_values import is_off

DENOISING: Final = "denoising_strength"
HIRES: Final = "enable_hr"
#: names of the second stage, the field of each, and what a reader must know
HIRES_NAMES: Final = (
    (HIRES, "hires_scale", "the second stage; without it, the names below are passed over"),
    ("hr_scale", "hires_scale", ""),
    ("hr_resize_x", "hires_scale", "0 only; write hr_scale"),
    ("hr_resize_y", "hires_scale", "0 only; write hr_scale"),
    ("hr_second_pass_steps", "hires_steps", "0 is as many as the first stage has"),
    ("hr_upscaler", "hires_upscaler", "Latent or Lanczos"),
)
#: names of a refiner, likewise
REFINER_NAMES: Final = (
    ("refiner_checkpoint", "refiner", "a title without its hash"),
    ("refiner_switch_at", "refiner_start", "1 is no refiner"),
)
#: how the script ControlNet resizes; a row's own ``resize`` takes precedence
_SCRIPT_RESIZE = "script_resize"
#: names of a row that are not fields, in the order in which they are read
_DEFERRED = (DENOISING, *(name for name, _, _ in HIRES_NAMES))
CONTROLNET: Final = "controlnet"

#: the web UI's defaults of the second stage
_HIRES_SCALE, _HIRES_STRENGTH = 2.0, 0.75
#: how base64 begins that is a PNG, a JPEG or a WebP
_BASE64 = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "UklGR": "webp"}
_TITLE = re.compile(r"\s*(?P<name>.*?)(?:\.safetensors)?(?:\s*\[[0-9a-fA-F]+\])?\s*")
_RESIZE_MODES = {"0": "stretch", "1": "crop", "2": "pad"} | {
    "just resize": "stretch",
    "crop and resize": "crop",
    "resize and fill": "pad",
}
#: arguments of the script ControlNet that change nothing here, or choose between equals
_UNIT_IGNORED = frozenset(
    {"enabled", "pixel_perfect", "processor_res", "lowvram", "low_vram", "save_detected_map", "hr_option", "id"}
)
#: thresholds of Canny's edges, as the script has them
_THRESHOLDS = {"threshold_a": 100, "threshold_b": 200}


class SecondStageError(Exception):
    """A value of the web UI's second stage: (its name, its value, problem and cure)."""


def read_source(value: Any) -> Any:
    """Return an input image as a source: base64 without a prefix, as the web UI has it, becomes a data URL."""
    if isinstance(value, str):
        for start, kind in _BASE64.items():
            if value.startswith(start):
                return f"data:image/{kind};base64,{value}"
    return value


def read_sources(value: Any) -> dict[str, Any]:
    """Return the field of ``init_images``.

    Raises:
        ValueError: there are several.
    """
    if not isinstance(value, list):
        return {"image": read_source(value)}
    if len(value) != 1:
        raise ValueError(f"has {len(value)} images; write one, and a row for each image")
    return {"image": read_source(value[0])}


def read_resize_mode(value: Any) -> dict[str, Any]:
    """Return the field of ``resize_mode``, of the web UI or of ControlNet.

    Raises:
        ValueError: it is not supported.
    """
    try:
        return {"resize": _RESIZE_MODES[str(value).strip().lower()]}
    except KeyError:
        raise ValueError("is not supported; write 0 (stretch), 1 (crop) or 2 (pad)") from None


def read_scripts(value: Any) -> dict[str, Any]:
    """Return the fields of ``alwayson_scripts``: those of ControlNet.

    Raises:
        ValueError: another script is on, or an argument is not supported; the text is problem and cure.
    """
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("is not an object; remove it")
    fields: dict[str, Any] = {}
    for name, script in value.items():
        if not is_script_on(script):
            continue
        if str(name).lower() != CONTROLNET:
            raise ValueError(f"has {name!r}, which is not supported; remove it")
        arguments = script.get("args") if isinstance(script, Mapping) else script
        fields = _fields_of_units(_units(arguments))
    return fields


def is_script_on(script: object) -> bool:
    """Return whether a script would run: its first argument is its switch, or each is an object with one."""
    arguments = script.get("args") if isinstance(script, Mapping) else script
    if isinstance(arguments, list) and arguments:
        if isinstance(arguments[0], bool):
            return arguments[0]
        return any(not isinstance(each, Mapping) or each.get("enabled", True) for each in arguments)
    return bool(arguments)


def set_second_stage(fields: dict[str, Any], notes: Notes) -> None:
    """Replace the web UI's strength, second stage, refiner and resizing by the fields that they mean in this row.

    Raises:
        SecondStageError: a value is not supported.
    """
    _set_refiner(fields, notes)
    if (resize := fields.pop(_SCRIPT_RESIZE, None)) is not None:
        fields.setdefault("resize", resize)
    given: dict[str, Any] = {name: fields.pop(name) for name in _DEFERRED if name in fields}
    if not given:
        return
    denoising = given.pop(DENOISING, None)
    if not is_off(given.pop(HIRES, None)):
        _set_hires(fields, given, denoising)
        notes.add("enable_hr is read as hires_scale")
        return
    for name in given:
        notes.add(f"{name!r} is passed over: enable_hr is off")
    if denoising is None:
        return
    if fields.get("image") is None:
        notes.add(f"{DENOISING!r} is passed over: the row has no image")
    else:
        _set(fields, DENOISING, "strength", denoising)
        notes.add(f"{DENOISING!r} is read as strength")


def _set_refiner(fields: dict[str, Any], notes: Notes) -> None:
    title, at = (fields.pop(name, None) for name, _, _ in REFINER_NAMES)
    if is_off(title) or _is_never(at):
        if title is not None or at is not None:
            notes.add("'refiner_switch_at' is passed over: there is no refiner")
        return
    found = _TITLE.fullmatch(title) if isinstance(title, str) else None
    _set(fields, "refiner_checkpoint", "refiner", found["name"] if found else title)
    if at is not None:
        _set(fields, "refiner_switch_at", "refiner_start", at)
    notes.add("'refiner_checkpoint' is read as refiner")


def _is_never(at: object) -> bool:
    """Return whether a refiner would begin after the last step."""
    try:
        return isinstance(at, int | float | str) and float(at) >= 1
    except ValueError:
        return False


def _set_hires(fields: dict[str, Any], given: Mapping[str, Any], denoising: Any) -> None:
    for name in ("hr_resize_x", "hr_resize_y"):
        if not is_off(given.get(name)):
            raise SecondStageError(name, given[name], "is not supported; write hr_scale")
    scale = given.get("hr_scale")
    _set(fields, "hr_scale", "hires_scale", _HIRES_SCALE if scale is None else scale)
    _set(fields, DENOISING, "hires_strength", _HIRES_STRENGTH if denoising is None else denoising)
    if not is_off(given.get("hr_second_pass_steps")):
        _set(fields, "hr_second_pass_steps", "hires_steps", given["hr_second_pass_steps"])
    upscaler = given.get("hr_upscaler")
    match str(upscaler or "Latent").strip().lower():
        case "latent":
            _set(fields, "hr_upscaler", "hires_upscaler", "latent")
        case "none" | "lanczos" | "pixel":
            _set(fields, "hr_upscaler", "hires_upscaler", "pixel")
        case _:
            raise SecondStageError("hr_upscaler", upscaler, "is not supported; write Latent or Lanczos")


def _set(fields: dict[str, Any], name: str, field: str, value: Any) -> None:
    if fields.setdefault(field, value) != value:
        raise SecondStageError(name, value, f"sets {field} a second time; write it once")


def _units(arguments: object) -> list[Mapping[str, Any]]:
    """Return the units of the script ControlNet that are on."""
    units = arguments if isinstance(arguments, list) else []
    if not units or not all(isinstance(unit, Mapping) for unit in units):
        raise ValueError("has ControlNet without units; write args with an object for each")
    return [unit for unit in units if unit.get("enabled", True)]


def _fields_of_units(units: list[Mapping[str, Any]]) -> dict[str, Any]:
    read = [_read_unit(unit) for unit in units]
    fields: dict[str, Any] = {name: [unit[name] for unit in read] for name in read[0] if name != "resize"}
    modes = {unit["resize"] for unit in read}
    if len(modes) > 1:
        raise ValueError("has ControlNets with several resize modes; write one for all")
    # the script's images come from the input of img2img if there are none
    if all(image is None for image in fields["control_image"]):
        del fields["control_image"]
    elif None in fields["control_image"]:
        raise ValueError("has a ControlNet without an image; write image in each unit")
    return {**fields, _SCRIPT_RESIZE: modes.pop()}


def _read_unit(unit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that one ControlNet adds to the lists of a row."""
    known = dict(unit)
    for name in _UNIT_IGNORED:
        known.pop(name, None)
    model = known.pop("model", None)
    found = _TITLE.fullmatch(model) if isinstance(model, str) else None
    if found is None or is_off(found["name"]):
        raise ValueError("has a ControlNet without a model; write a name of /controlnet/model_list")
    module = str(known.pop("module", None) or "none").lower()
    if module not in {"none", "canny"}:
        raise ValueError(f"has the ControlNet module {module!r}, which is not supported; write none or canny")
    for name, default in _THRESHOLDS.items():
        threshold = known.pop(name, default)
        if module == "canny" and threshold not in {default, -1, None}:
            raise ValueError(f"has {name} {threshold}, which is not supported; remove it: it is {default}")
    mode = known.pop("control_mode", 0)
    if str(mode).lower() not in {"0", "balanced"}:
        raise ValueError(f"has control_mode {mode!r}, which is not supported; write 0 (balanced)")
    entry = {
        "controlnet": found["name"],
        "control_image": _image_of_unit(known),
        "controlnet_conditioning_scale": known.pop("weight", 1.0),
        "control_guidance_start": known.pop("guidance_start", 0.0),
        "control_guidance_end": known.pop("guidance_end", 1.0),
        "control_preprocessor": module,
        **read_resize_mode(known.pop("resize_mode", 1)),
    }
    for name, value in known.items():
        if not is_off(value):
            raise ValueError(f"has the ControlNet argument {name!r}, which is not supported; remove it")
    return entry


def _image_of_unit(unit: dict[str, Any]) -> Any:
    image, other = unit.pop("image", None), unit.pop("input_image", None)
    image = other if image is None else image
    if isinstance(image, Mapping):
        if not is_off(image.get("mask")):
            raise ValueError("has a ControlNet with a mask, which is not supported; remove it")
        image = image.get("image")
    return read_source(image)
