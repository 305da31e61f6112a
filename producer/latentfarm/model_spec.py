"""Which model is meant: an alias for the queue and a source for the weights. No torch: nothing is loaded here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from latentfarm.errors import InputError
from latentfarm.model_source import is_location, parse_source
from latentfarm.names import BUNDLED_MODELS, DEFAULT_MODEL, check_model_alias
from latentfarm.settings import Settings

#: of a file name, taken off for an alias
_FILE_SUFFIX = re.compile(r"\.(safetensors|gguf|ckpt|pt|bin)$")
#: in LATENTFARM_MODELS
_BETWEEN_MODELS = ";"
_EXAMPLE = "CompVis/stable-diffusion-v1-4"


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
    if text and is_location(parse_source(text).location):
        return ModelSpec(_alias_of(parse_source(text).location), _absolute(text))
    if _FILE_SUFFIX.search(parse_source(text).location.lower()):
        raise InputError(f"model {text!r}: there is no such file; check the path")
    raise InputError(
        f"model {text!r}: write {', '.join(BUNDLED_MODELS)}, a diffusers folder, a .safetensors or .gguf file, a hub "
        f"id such as {_EXAMPLE}, or ALIAS= and one of these"
    )


def parse_models(texts: Iterable[str]) -> tuple[ModelSpec, ...]:
    """Parse the models of one worker.

    Raises:
        InputError: a text is no model, or two have one alias.
    """
    specs = tuple(parse_model(text) for text in texts)
    aliases = [spec.alias for spec in specs]
    for alias in aliases:
        if aliases.count(alias) > 1:
            raise InputError(f"model {alias!r} is there twice; give each an alias of its own: ALIAS=SOURCE")
    return specs


def served_models(settings: Settings) -> tuple[ModelSpec, ...]:
    """Return the models that a worker with these settings serves; jobs of the first are leased first.

    Raises:
        InputError: ``LATENTFARM_MODELS`` has a text that is no model, or two models of one alias.
    """
    texts = [text.strip() for text in settings.models.split(_BETWEEN_MODELS)]
    specs = parse_models(text for text in texts if text)
    return specs or (ModelSpec(settings.model, settings.model_source),)


def of_model(settings: Settings, alias: str) -> Settings:
    """Return the settings with the one of several models that has this alias; unchanged if none has it.

    Raises:
        InputError: as ``served_models``.
    """
    found = [spec for spec in served_models(settings) if spec.alias == alias]
    return with_models(settings, found) if settings.models and found else settings


def with_models(settings: Settings, specs: Sequence[ModelSpec]) -> Settings:
    """Return the settings of a worker that serves these models.

    Raises:
        InputError: the text of a source has a semicolon, which separates models.
    """
    texts = [f"{spec.alias}={spec.source or DEFAULT_MODEL}" for spec in specs]
    for text in texts:
        if len(texts) > 1 and _BETWEEN_MODELS in text:
            raise InputError(f"model {text!r}: a worker of several models takes no path with a semicolon; rename it")
    several = f"{_BETWEEN_MODELS} ".join(texts) if len(texts) > 1 else ""
    return settings.model_copy(update={"model": specs[0].alias, "model_source": specs[0].source, "models": several})


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
    if not source.location or not is_location(source.location):
        raise InputError(
            f"model source {source.location!r} is neither a folder, a file nor a hub id such as {_EXAMPLE}; check the "
            "path"
        )
    for name in ("base", "vae"):
        value = getattr(source, name)
        if value and not is_location(value):
            raise InputError(f"{name} {value!r} is neither a folder, a file nor a hub id such as {_EXAMPLE}")
    # absolute: a worker may run in another folder
    local = {name: _resolved(getattr(source, name)) for name in ("location", "base", "vae")}
    return str(replace(source, **local))


def _resolved(location: str) -> str:
    return str(Path(location).resolve()) if location and Path(location).exists() else location


def _alias_of(location: str) -> str:
    slug = re.sub(r"[^a-z0-9._-]+", "-", _FILE_SUFFIX.sub("", Path(location).name.lower())).strip("-._")
    return check_model_alias(slug[:64] or "model")
