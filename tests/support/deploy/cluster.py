"""Render the overlays of deploy/kubernetes, and find objects in them."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from tests.conftest import REPOSITORY
from tests.support import tools

KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
SCHEMAS = Path(__file__).parent / "schemas"

Object = dict[str, Any]


class Overlay:
    """The rendered objects of one overlay."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def of(self, kind: str, **labels: str) -> list[Object]:
        """Return the objects of a kind that have these labels (with ``component`` for app.kubernetes.io/component)."""
        wanted = {f"app.kubernetes.io/{name}": value for name, value in labels.items()}
        return [each for each in self.objects if each["kind"] == kind and wanted.items() <= labels_of(each).items()]

    def one(self, kind: str, name: str) -> Object:
        [found] = [each for each in self.of(kind) if each["metadata"]["name"] == name]
        return found

    @property
    def workers(self) -> list[Object]:
        return self.of("Deployment", component="worker")

    @property
    def exporter(self) -> Object:
        return self.one("Deployment", "latentfarm-exporter")

    @property
    def server(self) -> Object:
        return self.one("Deployment", "latentfarm-server")

    def pods(self) -> dict[str, Object]:
        """Return the pod templates by their Deployment's name."""
        return {each["metadata"]["name"]: each["spec"]["template"] for each in self.of("Deployment")}

    def environment(self, template: Object) -> dict[str, str | None]:
        """Return the environment of a pod's container; None is the value of a secret."""
        [container] = template["spec"]["containers"]
        found: dict[str, str | None] = {}
        for source in container["envFrom"]:
            found |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        return found | {each["name"]: each.get("value") for each in container["env"]}


def labels_of(thing: Object) -> dict[str, str]:
    labels: dict[str, str] = thing["metadata"].get("labels", {})
    return labels


def component_of(thing: Object) -> str:
    return labels_of(thing)["app.kubernetes.io/component"]


def selects(selector: Object, template: Object) -> bool:
    """Return whether a selector, which has labels only, matches these pods."""
    assert set(selector) <= {"matchLabels"}
    return bool(selector.get("matchLabels", {}).items() <= labels_of(template).items())


def render(folder: Path) -> Overlay:
    done = subprocess.run(
        [tools.find("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    # warnings are errors: kustomize warns of deprecated fields
    assert done.stderr == ""
    return Overlay(list(yaml.safe_load_all(done.stdout)))


@cache
def overlay(name: str) -> Overlay:
    return render(KUBERNETES / "overlays" / name)


@cache
def custom_schema(kind: str) -> Object | None:
    """Return the schema of an operator's kind, None for Kubernetes' own."""
    file = SCHEMAS / f"{kind}.json"
    found: Object | None = json.loads(file.read_text()) if file.exists() else None
    return found
