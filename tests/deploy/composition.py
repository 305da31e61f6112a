"""compose.yaml, read as `docker compose` reads it: its own variables put in, a service's image looked up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.deploy.dockerfiles import DEPLOY, Image

COMPOSE = DEPLOY / "compose.yaml"
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")


@dataclass(frozen=True)
class Service:
    """A service; ``image`` is the one that this repository builds for it, if it does."""

    name: str
    told: Mapping[str, Any]
    image: Image

    @property
    def command(self) -> list[str]:
        """What a container of it starts."""
        return [*self.told.get("entrypoint", self.image.entrypoint), *self.told.get("command", self.image.command)]

    @property
    def health(self) -> list[str]:
        """What tells whether a container of it is well."""
        check = self.told.get("healthcheck", {}).get("test") or ["CMD", *self.image.health]
        return ["sh", "-c", *check[1:]] if check[0] == "CMD-SHELL" else check[1:]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a container of it has."""
        return {**self.image.environment, **self.told.get("environment", {})}


def read(file: Path = COMPOSE, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the file with ``${NAME:-default}`` and ``$$`` replaced."""
    found = _filled_in(yaml.safe_load(file.read_text()), variables or {})
    assert isinstance(found, dict)
    return found


def services(variables: Mapping[str, str] | None = None) -> dict[str, Service]:
    """Return the services of compose.yaml."""
    return {name: Service(name, told, _image(told)) for name, told in read(variables=variables)["services"].items()}


def _image(told: Mapping[str, Any]) -> Image:
    if build := told.get("build"):
        return Image.built_by(COMPOSE.parent / build["context"] / build["dockerfile"])
    return Image()


def _filled_in(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled_in(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled_in(each, variables) for each in value]
    if not isinstance(value, str):
        return value

    def put_in(found: re.Match[str]) -> str:
        return "$" if found["dollar"] else variables.get(found["name"]) or found["default"] or ""

    return _VARIABLE.sub(put_in, value)
