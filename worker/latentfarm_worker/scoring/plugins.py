"""Scorers of installed packages: entry points of the group ``latentfarm.scorers``."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, cast

from PIL import Image

from latentfarm.edit_fields import check_adapter_name
from latentfarm.errors import ModelError
from latentfarm.settings import Settings

GROUP = "latentfarm.scorers"


class Scorer(Protocol):
    """A scorer of a package: a function, or an object with ``__call__``."""

    def __call__(self, text: str, image: Image.Image, /) -> float:
        """Return the score of an image, mode RGB, that a prompt was made into. Any finite number is a score."""


def load_plugins(settings: Settings) -> dict[str, Scorer]:
    """Return the scorers of all installed packages, by name. A class is constructed with the settings.

    Raises:
        ModelError: one cannot be loaded, has a name that no job can write, or two have the same.
    """
    found: dict[str, Scorer] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name in found:
            raise ModelError(f"two installed packages have a scorer {entry.name!r}; uninstall one of them")
        found[entry.name] = _load(entry, settings)
    return found


def _load(entry: EntryPoint, settings: Settings) -> Scorer:
    package = entry.dist.name if entry.dist is not None else "a package"
    try:
        check_adapter_name(entry.name)
        loaded = entry.load()
        scorer = loaded(settings) if isinstance(loaded, type) else loaded
    except Exception as error:
        raise ModelError(
            f"scorer {entry.name!r} of {package} cannot be loaded ({type(error).__name__}: {error}); repair or "
            "uninstall it"
        ) from error
    if not callable(scorer):
        raise ModelError(
            f"scorer {entry.name!r} of {package} is {type(scorer).__name__}, which cannot be called; write a function "
            "of text and image"
        )
    return cast("Scorer", scorer)
