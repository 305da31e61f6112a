"""The bodies of ``txt2img`` and ``img2img``: the web UI's fields, read as rows of prompts.

A field that the web UI does not know is ignored, as it ignores it. One that it knows, that is on and that would change
the image, is refused.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from latentfarm.limits import MAX_SEED
from latentfarm.samplers import find_sampler
from latentfarm.server.http.request_error import RequestError
from latentfarm.submission.prompts import Notes, ReadOptions, RowError
from latentfarm.submission.prompts.aliases import is_any_seed
from latentfarm.submission.prompts.off_values import is_off
from latentfarm.submission.prompts.rows import RowCheck, abbreviate

#: images of one request: their bytes are in memory until they are sent
MAX_IMAGES = 32
#: the web UI's defaults
_STEPS, _CFG_SCALE = 50, 7.0
#: as in the web UI, a random seed is less than this
_RANDOM_SEEDS = 2**32 - 2
#: fields of the body that are fields of a row, under the web UI's names or our own
_ROW_FIELDS = (
    *("prompt", "negative_prompt", "width", "height", "steps", "cfg_scale", "prompt_syntax", "denoising_strength"),
    *("enable_hr", "hr_scale", "hr_resize_x", "hr_resize_y", "hr_second_pass_steps", "hr_upscaler"),
    *("refiner_checkpoint", "refiner_switch_at"),
)
#: fields that have images, so that an answer does not repeat them
_SCRIPTS = "alwayson_scripts"
_SWITCH_OFF = "it is not supported; set it to false, 0 or an empty text"
#: fields that change the image unless they are off, and the cure
_UNSUPPORTED: Mapping[str, str] = {
    "firstpass_image": _SWITCH_OFF,
    "infotext": "it is not supported; send its settings as fields",
    "restore_faces": _SWITCH_OFF,
    "s_churn": _SWITCH_OFF,
    "s_min_uncond": _SWITCH_OFF,
    "s_tmin": _SWITCH_OFF,
    "script_name": _SWITCH_OFF,
    "seed_resize_from_h": _SWITCH_OFF,
    "seed_resize_from_w": _SWITCH_OFF,
    "styles": "it is not supported; write the words of the style into the prompt",
    "subseed_strength": _SWITCH_OFF,
    "tiling": _SWITCH_OFF,
}
#: settings of the web UI that change no image, by how they begin
_HARMLESS_SETTINGS = (
    "add_",
    "directories_",
    "do_not_",
    "enable_pnginfo",
    "export_",
    "grid_",
    "jpeg_",
    "live_preview",
    "n_rows",
    "outdir_",
    "return_",
    "samples_",
    "save_",
    "send_",
    "show_progress",
    "webp_",
)
#: settings of a second stage of its own, which are those of the first here, and what chooses them
_HIRES_UNSUPPORTED: Mapping[str, frozenset[str]] = {
    "hr_prompt": frozenset(),
    "hr_negative_prompt": frozenset(),
    "hr_checkpoint_name": frozenset({"use same checkpoint"}),
    "hr_sampler_name": frozenset({"use same sampler"}),
    "hr_scheduler": frozenset({"use same scheduler"}),
}
#: schedulers that add noise at each step in the web UI, by our names
_NOISY = re.compile(r"euler_a|kdpm2_a|dpm\+\+(?:2s|.*sde)")
#: what the web UI puts around a model's name: the ending of its file and a hash
_TITLE = re.compile(r"(?P<name>.*?)(?:\.safetensors|\.ckpt)?(?:\s*\[[0-9a-fA-F]+\])?")


class _Body(BaseModel):
    """The fields that are read here; the others are kept as they are."""

    model_config = ConfigDict(extra="allow")

    seed: Any = -1
    n_iter: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    batch_size: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    sampler_name: str | None = None
    sampler_index: str | int | None = None
    scheduler: str | None = None
    send_images: bool = True
    override_settings: dict[str, Any] | None = None
    alwayson_scripts: dict[str, Any] | None = None


@dataclass(frozen=True)
class TextToImage:
    """A valid request.

    Attributes:
        rows: one for each image, with its seed.
        model: the model that the request names; empty for the chosen one.
        batch_size: images of one batch of the web UI.
        send_images: whether the answer has the images.
        parameters: the fields that were read, for the answer.
        notes: what differs from the web UI.
    """

    rows: list[dict[str, Any]]
    model: str
    batch_size: int
    send_images: bool
    parameters: dict[str, Any]
    notes: list[str]


def read_text_to_image(body: object) -> TextToImage:
    """Return the request of a body of ``txt2img``.

    Raises:
        RequestError: 400 with field, value and cure.
    """
    return read_body(body, {}, place="txt2img")


def read_body(body: object, inputs: Mapping[str, Any], *, place: str) -> TextToImage:
    """Return the request of a body.

    Args:
        body: the JSON of the request.
        inputs: the web UI's names of further fields of the row, and their values.
        place: the name of the operation, for messages.

    Raises:
        RequestError: 400 with field, value and cure.
    """
    given = given_fields(body)
    fields = _Body.model_validate(given)
    _refuse_unsupported(given)
    settings = read_settings(fields.override_settings or {})
    scheduler, notes = _scheduler(fields)
    if "eta" in given:
        _check_eta(given["eta"], scheduler or "")
    images = fields.n_iter * fields.batch_size
    if images > MAX_IMAGES:
        raise invalid(
            f"n_iter {fields.n_iter} times batch_size {fields.batch_size} is {images} images; "
            f"send at most {MAX_IMAGES}, or submit a batch"
        )
    row = _check_row(
        {
            "prompt": "",
            "prompt_syntax": "a1111",
            "steps": _STEPS,
            "cfg_scale": _CFG_SCALE,
            "scheduler": scheduler,
            **{name: given[name] for name in _ROW_FIELDS if name in given},
            _SCRIPTS: fields.alwayson_scripts or {},
            **inputs,
            **settings.fields,
        },
        place,
    )
    seed = _first_seed(fields.seed, images)
    known = (_Body.model_fields.keys() | set(_ROW_FIELDS)) - {_SCRIPTS}
    return TextToImage(
        rows=[{**row, "seed": seed + number} for number in range(images)],
        model=settings.model,
        batch_size=fields.batch_size,
        send_images=fields.send_images,
        parameters={name: value for name, value in given.items() if name in known},
        notes=notes,
    )


def given_fields(body: object) -> dict[str, Any]:
    """Return the fields of a body that are not null.

    Raises:
        RequestError: 400, it is no object.
    """
    if not isinstance(body, dict):
        raise invalid('the body is no object; send {"prompt": "..."}')
    return {name: value for name, value in body.items() if value is not None}


@dataclass(frozen=True)
class Settings:
    """Settings of the web UI that have a meaning here: the model, and fields of rows."""

    model: str
    fields: dict[str, Any]


def read_settings(settings: Mapping[str, Any]) -> Settings:
    """Return what the web UI's settings mean here.

    Raises:
        RequestError: 400, a setting is not supported.
    """
    model, fields = "", {}
    for name, value in settings.items():
        match name:
            case "sd_model_checkpoint":
                model = model_of_title(value)
            case "CLIP_stop_at_last_layers":
                fields["clip_stop_at_last_layers"] = value
            case "samples_format":
                fields["image_format"] = str(value).lower()
            case "sd_vae" if str(value).lower() == "automatic":
                continue
            case _ if not is_off(value) and not name.startswith(_HARMLESS_SETTINGS):
                raise invalid(f"the setting {name[:60]} {abbreviate(value)} is not supported; remove it")
    return Settings(model, fields)


def model_of_title(title: object) -> str:
    """Return the name of the model in a title of the web UI: ``name.safetensors [0123abcd]``; empty for none."""
    if title is not None and not isinstance(title, str):
        raise invalid(f"sd_model_checkpoint {abbreviate(title)} is no text; send a title of /sdapi/v1/sd-models")
    found = _TITLE.fullmatch((title or "").strip())
    return found["name"] if found else str(title)


def _refuse_unsupported(given: Mapping[str, Any]) -> None:
    for name, cure in _UNSUPPORTED.items():
        if not is_off(given.get(name)):
            raise invalid(f"{name} {abbreviate(given[name])}: {cure}")
    if given.get("s_noise", 1) != 1:
        raise invalid(f"s_noise {abbreviate(given['s_noise'])} is not supported; set it to 1")
    for name, same in _HIRES_UNSUPPORTED.items():
        value = given.get(name)
        if not (is_off(given.get("enable_hr")) or is_off(value) or str(value).lower() in same):
            raise invalid(f"{name} {abbreviate(value)} is not supported; remove it: that of the first stage holds")


def _scheduler(fields: _Body) -> tuple[str | None, list[str]]:
    """Return the short name of the scheduler, None for the model's own, and how it differs from the web UI's."""
    name, schedule = fields.sampler_name or fields.sampler_index, fields.scheduler
    if name in {None, ""}:
        if not is_off(schedule) and str(schedule).lower() != "automatic":
            raise invalid(f"scheduler {abbreviate(schedule)} has no sampler; send sampler_name too")
        return None, []
    if isinstance(name, int):
        raise invalid(f"sampler_index {name} is a number; send the sampler's name, such as Euler a, as sampler_name")
    try:
        # without a schedule type, the web UI takes the sampler's usual one
        found = find_sampler(str(name), schedule or "Automatic")
    except ValueError as error:
        both = f"{name} {schedule}" if schedule else name
        raise invalid(f"sampler_name {abbreviate(both)} {error}") from None
    note = f"sampler {abbreviate(name)} is scheduler {found.scheduler} here, which differs: {found.near}"
    return found.scheduler, [note] if found.near else []


def _check_eta(eta: object, scheduler: str) -> None:
    """Refuse an eta that is not the sampler's own: 0 for DDIM, 1 for those that add noise, anything for the others."""
    wanted = 0 if scheduler.startswith("ddim") else 1 if _NOISY.match(scheduler) else eta
    if eta != wanted:
        raise invalid(f"eta {abbreviate(eta)} is not supported with {scheduler}; remove it, or set it to {wanted}")


def _check_row(fields: dict[str, Any], place: str) -> dict[str, Any]:
    row = RowCheck(ReadOptions(), Notes()).row(place, fields)
    if isinstance(row, RowError):
        raise invalid(row.text)
    return row.row.given()


def _first_seed(seed: object, images: int) -> int:
    if is_any_seed(seed):
        return secrets.randbelow(_RANDOM_SEEDS)
    whole = seed.is_integer() if isinstance(seed, float) else isinstance(seed, int) and not isinstance(seed, bool)
    if not whole:
        raise invalid(f"seed {abbreviate(seed)} is no whole number; send -1 for a random one")
    first, last = int(cast("int | float", seed)), MAX_SEED - images + 1
    if not 0 <= first <= last:
        raise invalid(f"seed {abbreviate(seed)} is out of range; send 0 to {last}")
    return first


def invalid(message: str) -> RequestError:
    """Return the error of a body that cannot be read."""
    return RequestError(400, "invalid_request", message)
