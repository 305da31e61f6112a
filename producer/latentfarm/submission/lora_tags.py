"""LoRAs in prompts as AUTOMATIC1111 writes them: ``<lora:name:scale>``.

They are taken out of the prompt and put into ``loras``.

Source: the web UI's ``modules/extra_networks.py`` and ``extensions-builtin/Lora/extra_networks_lora.py``. There a tag
may have a scale for the text encoder and one for the U-Net, by place or as ``te=`` and ``unet=``. A LoRA has one scale
here, so both must be the same.
"""

from __future__ import annotations

import re

from pydantic import ValidationError

from latentfarm.edit_fields import LoraUse
from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row
from latentfarm.limits import MAX_LORAS
from latentfarm.submission.prompts.rows import abbreviate, describe_invalid

_TAG = re.compile(r"<(?P<kind>lora|lyco)\s*:(?P<content>[^<>]*)>", re.IGNORECASE)
#: how a tag begins, closed or not
_BEGIN = re.compile(r"<(?:lora|lyco|hypernet)\s*:[^<>]*>?", re.IGNORECASE)
_EXAMPLE = "write <lora:name:0.8>"
#: whose scales a tag has, in order
_PLACES = ("te", "unet")


def has_lora_tag(text: str) -> bool:
    """Return whether a text has a tag, or what begins like one."""
    return "<" in text and _BEGIN.search(text) is not None


def take_loras(row: Row, defaults: Defaults) -> Row:
    """Return a row without the tags of its prompt, their LoRAs added to those of the row, or else of the defaults.

    A tag takes precedence over the same LoRA of the defaults. A row that is not read in AUTOMATIC1111's syntax is left
    unchanged.

    Raises:
        InputError: a tag is malformed, or in the negative prompt, or names a LoRA again.
    """
    if (row.prompt_syntax or defaults.prompt_syntax) != "a1111":
        return row
    negative = defaults.negative_prompt if row.negative_prompt is None else row.negative_prompt
    if negative and has_lora_tag(negative):
        raise InputError(
            f"negative_prompt {abbreviate(negative)} has a LoRA; move it to the prompt, or remove it",
            field="negative_prompt",
        )
    if not has_lora_tag(row.prompt):
        return row
    prompt, tagged = split_tags(row.prompt)
    named = {lora.name for lora in tagged}
    own = row.loras or ()
    if twice := [lora.name for lora in own if lora.name in named]:
        raise _problem(row.prompt, f"has the LoRA {twice[0]}, and so has loras; write it once")
    inherited = [lora for lora in defaults.loras or () if lora.name not in named] if row.loras is None else []
    loras = (*inherited, *own, *tagged)
    if len(loras) > MAX_LORAS:
        raise _problem(row.prompt, f"gives the row {len(loras)} LoRAs; write at most {MAX_LORAS}")
    return row.model_copy(update={"prompt": prompt, "loras": loras})


def split_tags(text: str) -> tuple[str, tuple[LoraUse, ...]]:
    """Return a prompt without its tags, and their LoRAs in order.

    Raises:
        InputError: a tag is malformed, a LoRA is named twice, or the prompt has nothing else.
    """
    loras = tuple(_read(text, tag["content"]) for tag in _TAG.finditer(text))
    rest = _TAG.sub("", text).strip()
    if left := _BEGIN.search(rest):
        cure = "hypernetworks are not supported; remove it" if left[0][1:2] in "hH" else f"is not a tag; {_EXAMPLE}"
        raise _problem(text, f"has {abbreviate(left[0])}, which {cure}")
    names = [lora.name for lora in loras]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise _problem(text, f"has the LoRA {twice} twice; write it once")
    if not rest:
        raise _problem(text, "has LoRAs only; describe the image too")
    return rest, loras


def _read(text: str, content: str) -> LoraUse:
    """Return the LoRA of a tag's content: ``name``, ``name:scale`` or ``name:scale:scale``."""
    name, *parts = (part.strip() for part in content.split(":"))
    placed = [part for part in parts if "=" not in part]
    if len(placed) > len(_PLACES):
        raise _problem(text, f"has <lora:{content}>, which has too many scales; {_EXAMPLE}")
    scales = dict(zip(_PLACES, placed, strict=False))
    for part in parts:
        key, equals, value = (word.strip() for word in part.partition("="))
        if equals and key not in _PLACES:
            raise _problem(text, f"has <lora:{content}>, and {abbreviate(part)} is not supported; {_EXAMPLE}")
        if equals:
            scales[key] = value
    scale = scales.get("te", "1")
    try:
        found = LoraUse.model_validate({"name": name, "scale": scale})
        if LoraUse.model_validate({"name": name, "scale": scales.get("unet", scale)}) != found:
            raise _problem(text, f"has <lora:{content}>, whose two scales differ; a LoRA has one scale, {_EXAMPLE}")
    except ValidationError as error:
        field = error.errors(include_url=False)[0]["loc"][0]
        raise _problem(text, f"has <lora:{content}>, whose {field} {describe_invalid(error)}") from None
    return found


def _problem(text: str, problem: str) -> InputError:
    return InputError(f"prompt {abbreviate(text)} {problem}", field="prompt")
