"""Which model is meant: an alias for the queue and a source for the weights. No torch: nothing is loaded here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from latentfarm.errors import InputError
from latentfarm.names import check_model_alias
from latentfarm.settings import DEFAULT_MODEL

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSpec:
    """A model: ``alias`` names its queue; ``source`` is a diffusers folder or a hub id, empty for the bundled model."""

    alias: str
    source: str = ""


def parse_model(text: str) -> ModelSpec:
    """Parse an alias, a diffusers folder, a hub id, or ``ALIAS=`` and one of these.

    Raises:
        InputError: the text is none of them.
    """
    alias, equals, source = text.partition("=")
    if equals:
        return ModelSpec(check_model_alias(alias), _absolute(source))
    if text == DEFAULT_MODEL:
        return ModelSpec(DEFAULT_MODEL)
    # Path("") is the current folder, which is not meant
    if text and (Path(text).is_dir() or _HUB_ID.fullmatch(text)):
        return ModelSpec(_alias_of(text), _absolute(text))
    raise InputError(
        f"model {text!r}: write {DEFAULT_MODEL}, a diffusers folder, a hub id such as CompVis/stable-diffusion-v1-4, "
        "or ALIAS=FOLDER_OR_HUB_ID"
    )


def _absolute(source: str) -> str:
    if source == DEFAULT_MODEL:
        return ""
    if source and Path(source).is_dir():
        # absolute: a worker may run in another folder
        return str(Path(source).resolve())
    if _HUB_ID.fullmatch(source):
        return source
    raise InputError(f"model source {source!r} is neither a folder nor a hub id such as CompVis/stable-diffusion-v1-4")


def _alias_of(source: str) -> str:
    slug = re.sub(r"[^a-z0-9._-]+", "-", Path(source).name.lower()).strip("-._")
    return check_model_alias(slug[:64] or "model")
