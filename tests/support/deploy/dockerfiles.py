"""Read how a container of an image starts, from the last stage of its Dockerfile."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))


@dataclass
class Image:
    """The configuration of an image, as far as it determines how a container starts."""

    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    folder: str = "/"
    volumes: list[str] = field(default_factory=list)

    @classmethod
    def built_by(cls, dockerfile: Path) -> Image:
        image = cls()
        for word, rest in _instructions(dockerfile):
            match word:
                case "FROM":
                    image = cls()
                case "ENTRYPOINT":
                    image.entrypoint = json.loads(rest)
                case "CMD":
                    image.command = json.loads(rest)
                case "HEALTHCHECK":
                    image.health = json.loads(rest.partition("CMD ")[2])
                case "ENV":
                    image.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
                case "USER":
                    image.user = rest
                case "WORKDIR":
                    image.folder = rest
                case "VOLUME":
                    image.volumes.append(rest)
        return image


def _instructions(dockerfile: Path) -> list[tuple[str, str]]:
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in whole.splitlines() if line]
