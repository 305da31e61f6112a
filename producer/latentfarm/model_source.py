"""Where a model's files are: a folder, a file or the hub's, and the options that choose among them. Imports little."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from latentfarm.errors import InputError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: a file of a hub repository, in a folder of it or not
_HUB_FILE = re.compile(r"[\w.-]+/[\w.-]+(?:/[^/,=]+)+\.(?:safetensors|gguf)", re.IGNORECASE)
_OPTION = re.compile(r",(base|vae|variant|revision)=")


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are, written ``LOCATION[,base=..][,vae=..][,variant=..][,revision=..]``.

    Attributes:
        location: a diffusers folder, a file, a hub id, or a hub id and a file in it; empty for the bundled model.
        base: a diffusers folder or hub id, with the tokenizers, configs and parts that a single file lacks.
        vae: a folder, file or hub id with another VAE.
        variant: the weights to read of several, such as ``fp16``.
        revision: the hub's branch, tag or commit [default: main].
    """

    location: str
    base: str = ""
    vae: str = ""
    variant: str = ""
    revision: str = ""

    def __str__(self) -> str:
        given = ((each.name, getattr(self, each.name)) for each in fields(self)[1:])
        return self.location + "".join(f",{name}={value}" for name, value in given if value)


def parse_source(text: str) -> ModelSource:
    """Parse the text of a source.

    Raises:
        InputError: an option is written twice or has no value.
    """
    location, *options = _OPTION.split(text)
    pairs = list(zip(options[::2], options[1::2], strict=True))
    for name, value in pairs:
        if not value or sum(name == other for other, _ in pairs) > 1:
            raise InputError(f"model source {text!r}: write {name}= once, with a value")
    return ModelSource(location, **dict(pairs))


def is_hub_id(location: str) -> bool:
    """Return whether a location is written as a repository of the hub."""
    return bool(_HUB_ID.fullmatch(location))


def is_hub_file(location: str) -> bool:
    """Return whether a location is written as a file in a repository of the hub."""
    return bool(_HUB_FILE.fullmatch(location))


def is_location(location: str) -> bool:
    """Return whether a location is on this machine, or is written as one of the hub."""
    return Path(location).exists() or is_hub_id(location) or is_hub_file(location)
