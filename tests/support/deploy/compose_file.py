"""Read compose.yaml as `docker compose` does: with its variables replaced, and with each service's image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.support.deploy.dockerfiles import DEPLOY, Image

COMPOSE = DEPLOY / "compose.yaml"
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")


@dataclass(frozen=True)
class Service:
    """A service. ``config`` is its entry; ``image`` is the one that this repository builds for it, if any."""

    name: str
    config: Mapping[str, Any]
    image: Image

    @property
    def command(self) -> list[str]:
        """Return the command of a container."""
        return [*self.config.get("entrypoint", self.image.entrypoint), *self.config.get("command", self.image.command)]

    @property
    def health(self) -> list[str]:
        """Return the command of the health check."""
        check = self.config.get("healthcheck", {}).get("test") or ["CMD", *self.image.health]
        return ["sh", "-c", *check[1:]] if check[0] == "CMD-SHELL" else check[1:]

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a container."""
        return {**self.image.environment, **self.config.get("environment", {})}


def read(file: Path = COMPOSE, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the file with ``${NAME:-default}`` and ``$$`` replaced."""
    found = _substituted(yaml.safe_load(file.read_text()), variables or {})
    assert isinstance(found, dict)
    return found


def services(variables: Mapping[str, str] | None = None) -> dict[str, Service]:
    """Return the services of compose.yaml."""
    return {
        name: Service(name, config, _image(config)) for name, config in read(variables=variables)["services"].items()
    }


def _image(config: Mapping[str, Any]) -> Image:
    if build := config.get("build"):
        return Image.built_by(COMPOSE.parent / build["context"] / build["dockerfile"])
    return Image()


def _substituted(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _substituted(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [_substituted(each, variables) for each in value]
    if not isinstance(value, str):
        return value

    def replacement(found: re.Match[str]) -> str:
        return "$" if found["dollar"] else variables.get(found["name"]) or found["default"] or ""

    return _VARIABLE.sub(replacement, value)
