"""Which model is meant: an alias for the queue and a source for the weights. No torch: nothing is loaded here."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

from latentfarm.errors import InputError
from latentfarm.names import check_model_alias
from latentfarm.settings import BUNDLED_MODELS, DEFAULT_MODEL

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: a file of a hub repository, in a folder of it or not
_HUB_FILE = re.compile(r"[\w.-]+/[\w.-]+(?:/[^/,=]+)+\.(?:safetensors|gguf)", re.IGNORECASE)
_OPTION = re.compile(r",(base|vae|variant|revision)=")
#: of a file name, taken off for an alias
_FILE_SUFFIX = re.compile(r"\.(safetensors|gguf|ckpt|pt|bin)$")
_EXAMPLE = "CompVis/stable-diffusion-v1-4"


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are, written ``LOCATION[,base=..][,vae=..][,variant=..][,revision=..]``.

    Attributes:
        location: a diffusers folder, a file, a hub id, a hub id and a file in it, or the name of a bundled model; empty
            for mini.
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

    @property
    def is_local(self) -> bool:
        """Whether the location is a folder or file of this machine."""
        return Path(self.location).exists()


@dataclass(frozen=True)
class ModelSpec:
    """A model: ``alias`` names its queue; ``source`` is a text of ``ModelSource``, empty for mini."""

    alias: str
    source: str = ""


def parse_model(text: str) -> ModelSpec:
    """Parse an alias, a source, or ``ALIAS=`` and a source.

    Raises:
        InputError: the text is none of them.
    """
    if text in BUNDLED_MODELS:
        return ModelSpec(text, _absolute(text))
    alias, equals, source = text.partition("=")
    # an equals sign in an option belongs to the source
    if equals and "," not in alias:
        return ModelSpec(check_model_alias(alias), _absolute(source))
    # Path("") is the current folder, which is not meant
    if text and _is_source(parse_source(text).location):
        return ModelSpec(_alias_of(parse_source(text).location), _absolute(text))
    raise InputError(
        f"model {text!r}: write {', '.join(BUNDLED_MODELS)}, a diffusers folder, a .safetensors or .gguf file, a hub "
        f"id such as {_EXAMPLE}, or ALIAS= and one of these"
    )


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


def with_options(source: str, *, base: str = "", vae: str = "", variant: str = "", revision: str = "") -> str:
    """Return a source with options of a command line, which take the place of those in its text.

    Raises:
        InputError: a bundled model takes none, or a source is neither local nor on the hub.
    """
    given = {name: value for name, value in locals().items() if name != "source" and value}
    if not given:
        return source
    if not source or source in BUNDLED_MODELS:
        raise InputError(f"--{next(iter(given))}: a bundled model takes none; name another with --model")
    return _absolute(str(replace(parse_source(source), **given)))


def _absolute(text: str) -> str:
    if text in BUNDLED_MODELS:
        return "" if text == DEFAULT_MODEL else text
    source = parse_source(text)
    if not source.location or not _is_source(source.location):
        raise InputError(
            f"model source {source.location!r} is neither a folder, a file nor a hub id such as {_EXAMPLE}; check the "
            "path"
        )
    for name in ("base", "vae"):
        value = getattr(source, name)
        if value and not _is_source(value):
            raise InputError(f"{name} {value!r} is neither a folder, a file nor a hub id such as {_EXAMPLE}")
    # absolute: a worker may run in another folder
    local = {name: _resolved(getattr(source, name)) for name in ("location", "base", "vae")}
    return str(replace(source, **local))


def _is_source(location: str) -> bool:
    return bool(Path(location).exists() or _HUB_ID.fullmatch(location) or _HUB_FILE.fullmatch(location))


def _resolved(location: str) -> str:
    return str(Path(location).resolve()) if location and Path(location).exists() else location


def _alias_of(location: str) -> str:
    slug = re.sub(r"[^a-z0-9._-]+", "-", _FILE_SUFFIX.sub("", Path(location).name.lower())).strip("-._")
    return check_model_alias(slug[:64] or "model")
