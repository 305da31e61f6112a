"""The names that other tools use for fields: one table for every format of prompt files.

``docs/reference/prompt-files.md`` is generated from it. A name is compared without case, and ``cfgScale``,
``cfg-scale`` and ``CFG scale`` are ``cfg_scale``.

Sources: AUTOMATIC1111 (``modules/api/models.py``, ``scripts/prompts_from_file.py``), kohya's sd-scripts
(``library/train_util.py``, ``gen_img.py``), ComfyUI (``nodes.py``), OpenAI's API reference, DiffusionDB's data card.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from latentfarm.image_formats import IMAGE_FORMATS
from latentfarm.submission.prompts import web_ui
from latentfarm.submission.prompts.off_values import is_off

#: names of a row that are not fields: a sampler of another tool, and its schedule of noise levels
SAMPLER, SCHEDULE = "sampler", "schedule"
IMAGES: Final = "num_images_per_prompt"
MASK: Final = "mask_image"

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = re.compile(r"[\s_-]+")
_SIZE = re.compile(r"\s*(\d{1,6})\s*[xX*\u00d7]\s*(\d{1,6})\s*")
_WHOLE = re.compile(r"\s*\d{1,7}\s*")
_ANY_SEED = frozenset({"-1", "-1.0", "random", "auto"})


class Dialect(StrEnum):
    """Where a name is used. The short names of a dialect mean something else elsewhere."""

    #: columns of tables, keys of JSON, bodies of OpenAI's requests, and AUTOMATIC1111's flags
    LONG = "columns and flags"
    KOHYA = "kohya's flags"
    DIFFUSIONDB = "DiffusionDB's JSON"


@dataclass(frozen=True, slots=True)
class Alias:
    """Names with the same meaning.

    Attributes:
        names: the names, as ``normalize`` returns them.
        field: the fields that they set; empty if they are passed over.
        tools: the tools that write them.
        parse: returns values by field; raises a ValueError with problem and cure [default: the field has the value].
        remark: what a reader must know; for a name without a field, why it is passed over.
        dialect: where the names are used.
        weak: used only if the row has no other name for the field.
        cure: for an option that would change the image unless it is off: what to do instead.
        deferred: whether it sets a field depends on the row; see ``web_ui``.
    """

    names: tuple[str, ...]
    field: str
    tools: str
    parse: Callable[[Any], Mapping[str, Any]] | None = None
    remark: str = ""
    dialect: Dialect = Dialect.LONG
    weak: bool = False
    cure: str = ""
    deferred: bool = False

    def read(self, value: Any) -> Mapping[str, Any]:
        """Return the values that a value sets, by field.

        Raises:
            ValueError: it is invalid, or an option that is on and not supported; the text is problem and cure.
        """
        if self.cure and not is_off(value):
            raise ValueError(f"is not supported; {self.cure}")
        if self.parse is not None:
            return self.parse(value)
        return {self.field: value} if self.field else {}

    @property
    def note(self) -> str:
        """What becomes of the names, after a name; empty if that depends on the row."""
        if self.deferred:
            return ""
        if self.field:
            return f"is read as {self.field}"
        return f"is passed over: {'it is off' if self.cure else self.remark}"


def normalize(name: str) -> str:
    """Return a name in lower case, its words separated by underscores."""
    return _SEPARATORS.sub("_", _CAMEL.sub("_", name.strip().lstrip("\ufeff"))).lower()


def is_any_seed(value: object) -> bool:
    """Return whether a seed is -1 or ``random``, which means any seed in AUTOMATIC1111, ComfyUI and kohya's scripts."""
    return not isinstance(value, bool) and isinstance(value, int | float | str) and str(value).strip() in _ANY_SEED


def _to(field: str, convert: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {field: convert(value)}


def _unchanged(value: Any) -> Any:
    return value


def _images(value: Any) -> Any:
    if isinstance(value, str) and not _WHOLE.fullmatch(value):
        raise ValueError("is invalid; write a whole number")
    return int(value) if isinstance(value, str) else value


def _size(value: Any) -> dict[str, int]:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return {}
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('is invalid; write "512x512", width first')
    return {"width": int(found[1]), "height": int(found[2])}


def _image_format(value: Any) -> dict[str, Any]:
    return {} if value == "auto" else {"image_format": value.lower() if isinstance(value, str) else value}


def _clip_skip(value: Any) -> Any:
    layers = _images(value)
    if isinstance(layers, bool) or not isinstance(layers, int):
        raise ValueError("is invalid; write a whole number")
    # the last layer used, counted from 1; 0 has the same effect in AUTOMATIC1111
    return max(layers, 1) - 1


def _sampler(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError("is invalid; write the sampler's name")
    return str(value).strip()


def _sampler_of_index(value: Any) -> str:
    if str(value).strip().isdecimal():
        raise ValueError("is a number; write the sampler's name, such as Euler a, as sampler_name")
    return _sampler(value)


def _override_settings(value: Any) -> dict[str, Any]:
    if is_off(value):
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("is not an object; remove it")
    fields: dict[str, Any] = {}
    for name, setting in value.items():
        if normalize(str(name)) == "clip_stop_at_last_layers":
            fields["clip_skip"] = _clip_skip(setting)
        elif normalize(str(name)) not in {"sd_model_checkpoint", "sd_vae", "samples_format"}:
            raise ValueError(f"has the setting {name!r}, which is not supported; remove it")
    return fields


_A1111, _COMFY, _KOHYA, _OPENAI, _DIFFUSIONDB = "AUTOMATIC1111", "ComfyUI", "kohya", "OpenAI", "DiffusionDB"
_OTHERS = "other APIs"
_NO_EFFECT = "it has no effect on the image here"

#: names that set fields
FIELD_ALIASES: tuple[Alias, ...] = (
    Alias(("prompts", "text", "caption", "positive", "positive_prompt"), "prompt", "datasets", weak=True),
    Alias(("negative", "neg", "neg_prompt"), "negative_prompt", _COMFY),
    Alias(
        ("steps", "step", "num_steps", "sample_steps", "sampling_steps", "inference_steps", "ddim_steps"),
        "num_inference_steps",
        f"{_A1111}, {_COMFY}, {_DIFFUSIONDB}",
    ),
    Alias(
        ("cfg_scale", "cfg", "guidance", "scale"),
        "guidance_scale",
        f"{_A1111}, {_COMFY}, {_DIFFUSIONDB}",
    ),
    Alias(("noise_seed",), "seed", _COMFY),
    Alias(("w",), "width", ""),
    Alias(("h",), "height", ""),
    Alias(("size", "resolution"), "width, height", _OPENAI, _size, "`512x768`: width first; `auto` sets neither"),
    Alias(
        ("sampler", "sampler_name", "sample_sampler"),
        "scheduler",
        f"{_A1111}, {_COMFY}",
        _to(SAMPLER, _sampler),
        "the sampler's name",
    ),
    Alias(("sampler_index",), "scheduler", _A1111, _to(SAMPLER, _sampler_of_index), "a name, not a number"),
    Alias(("schedule_type", "schedule"), "scheduler", _A1111, _to(SCHEDULE, _sampler), "together with the sampler"),
    Alias(
        ("n", "n_iter", "batch_size", "batch_count", "num_images", "num_outputs", "samples"),
        IMAGES,
        f"{_OPENAI}, {_A1111}",
        _to(IMAGES, _images),
        "two of them are multiplied",
    ),
    Alias(
        ("output_format",), "image_format", _OPENAI, _image_format, f"{', '.join(IMAGE_FORMATS)}; `auto` sets nothing"
    ),
    Alias(
        ("clip_stop_at_last_layers",), "clip_skip", _A1111, _to("clip_skip", _clip_skip), "one less: 2 is clip_skip 1"
    ),
    Alias(
        ("override_settings",),
        "clip_skip",
        _A1111,
        _override_settings,
        "CLIP_stop_at_last_layers; models are passed over",
    ),
    Alias(("custom_id",), "id", _OPENAI),
    Alias(("init_image", "source_image", "input_image"), "image", _OTHERS, _to("image", web_ui.read_source)),
    Alias(("init_images",), "image", _A1111, web_ui.read_sources, "a list of one; base64 needs no prefix"),
    Alias(("mask", "inpaint_mask", "source_mask"), "mask_image", f"{_A1111}, {_OTHERS}", _to(MASK, web_ui.read_source)),
    Alias(("prompt_strength", "denoise"), "strength", f"{_COMFY}, {_OTHERS}"),
    Alias(
        (web_ui.DENOISING,),
        "strength, hires_strength",
        _A1111,
        _to(web_ui.DENOISING, _unchanged),
        "passed over in a row without image and second stage",
        deferred=True,
    ),
    Alias(("resize_mode",), "resize", _A1111, web_ui.read_resize_mode, "0 is stretch, 1 crop, 2 pad"),
    *(
        Alias((name,), field, _A1111, _to(name, _unchanged), remark, deferred=True)
        for name, field, remark in (*web_ui.HIRES_NAMES, *web_ui.REFINER_NAMES)
    ),
    Alias(
        ("alwayson_scripts",),
        "controlnet, control_image, controlnet_conditioning_scale, control_guidance_start, control_guidance_end, "
        "control_preprocessor, resize",
        _A1111,
        web_ui.read_scripts,
        "the script ControlNet; others are refused if they are on",
        deferred=True,
    ),
    Alias(("lora",), "loras", _OTHERS),
    Alias(("control_net", "controlnet_model", "controlnets"), "controlnet", _OTHERS),
    Alias(("control_images", "controlnet_image"), "control_image", _OTHERS),
    Alias(
        ("control_scale", "control_weight", "controlnet_scale", "controlnet_weight", "controlnet_strength"),
        "controlnet_conditioning_scale",
        _OTHERS,
    ),
    Alias(("control_start",), "control_guidance_start", _OTHERS),
    Alias(("control_end",), "control_guidance_end", _OTHERS),
    Alias(("ip_adapter_weight",), "ip_adapter_scale", _OTHERS),
    Alias(("n",), "negative_prompt", _KOHYA, dialect=Dialect.KOHYA),
    Alias(("w",), "width", _KOHYA, dialect=Dialect.KOHYA),
    Alias(("h",), "height", _KOHYA, dialect=Dialect.KOHYA),
    Alias(("d",), "seed", _KOHYA, dialect=Dialect.KOHYA),
    Alias(("s",), "num_inference_steps", _KOHYA, dialect=Dialect.KOHYA),
    Alias(("l",), "guidance_scale", _KOHYA, dialect=Dialect.KOHYA),
    Alias(("ss",), "scheduler", _KOHYA, _to(SAMPLER, _sampler), "the sampler's name", Dialect.KOHYA),
    Alias(("t",), "strength", _KOHYA, dialect=Dialect.KOHYA),
    Alias(("cn",), "control_image", _KOHYA, dialect=Dialect.KOHYA),
    Alias(("p",), "prompt", _DIFFUSIONDB, dialect=Dialect.DIFFUSIONDB),
    Alias(("se",), "seed", _DIFFUSIONDB, dialect=Dialect.DIFFUSIONDB),
    Alias(("c",), "guidance_scale", _DIFFUSIONDB, dialect=Dialect.DIFFUSIONDB),
    Alias(("st",), "num_inference_steps", _DIFFUSIONDB, dialect=Dialect.DIFFUSIONDB),
    Alias(("sa",), "scheduler", _DIFFUSIONDB, _to(SAMPLER, _sampler), "the sampler's name", Dialect.DIFFUSIONDB),
)

#: names without effect here
PASSED_ALIASES: tuple[Alias, ...] = (
    Alias(
        ("model", "sd_model", "sd_model_checkpoint", "sd_model_name", "sd_model_hash", "sd_vae"),
        "",
        f"{_OPENAI}, {_A1111}",
        remark="a batch has one model",
    ),
    Alias(
        (
            "background",
            "moderation",
            "output_compression",
            "partial_images",
            "quality",
            "response_format",
            "safety_identifier",
            "style",
            "user",
        ),
        "",
        _OPENAI,
        remark=_NO_EFFECT,
    ),
    Alias(
        (
            "do_not_save_grid",
            "do_not_save_samples",
            "initial_noise_multiplier",
            "inpainting_fill",
            "outpath_grids",
            "outpath_samples",
            "override_settings_restore_afterwards",
            "prompt_for_display",
            "save_images",
            "send_images",
        ),
        "",
        _A1111,
        remark=_NO_EFFECT,
    ),
    Alias(("stream",), "", _OPENAI, cure="a batch cannot be streamed; remove it"),
    Alias(("styles",), "", _A1111, cure="write the style's words into the prompt"),
    Alias(
        (
            "eta",
            "inpaint_full_res",
            "inpainting_mask_invert",
            "restore_faces",
            "s_churn",
            "s_tmin",
            "script_args",
            "script_name",
            "seed_resize_from_h",
            "seed_resize_from_w",
            "subseed_strength",
            "tiling",
        ),
        "",
        _A1111,
        cure="remove it, or set it to 0 or false",
    ),
    # without subseed_strength, which is refused, it has no effect
    Alias(("subseed",), "", _A1111, remark=_NO_EFFECT),
    Alias(
        ("g",),
        "",
        _KOHYA,
        remark="it is FLUX's embedded guidance; this model has none",
        dialect=Dialect.KOHYA,
    ),
    Alias(("am",), "", _KOHYA, remark="it weights LoRAs by their places; write loras", dialect=Dialect.KOHYA),
)


def _by_name() -> dict[Dialect, Mapping[str, Alias]]:
    found: dict[Dialect, dict[str, Alias]] = {dialect: {} for dialect in Dialect}
    for alias in (*FIELD_ALIASES, *PASSED_ALIASES):
        for name in alias.names:
            found[alias.dialect][name] = alias
    # a short name of a dialect hides the long one
    return {dialect: MappingProxyType(found[Dialect.LONG] | names) for dialect, names in found.items()}


#: aliases by dialect and normalized name
ALIASES: Mapping[Dialect, Mapping[str, Alias]] = MappingProxyType(_by_name())
