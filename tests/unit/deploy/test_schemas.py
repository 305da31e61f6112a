"""Every object of every overlay conforms to the schemas of Kubernetes and of the operators."""

from __future__ import annotations

from copy import deepcopy

import jsonschema
import kubernetes_validate
import pytest
from tests.support.deploy.cluster import OVERLAYS, Object, custom_schema, overlay

pytestmark = pytest.mark.unit

#: the oldest version with all features in use, and the newest one with a schema
VERSIONS = ("1.27", "1.37")
FULL = "gpu-spot-autoscaled"


def check(thing: Object, version: str) -> None:
    schema = custom_schema(thing["kind"])
    if schema is None:
        kubernetes_validate.validate(thing, version, strict=True)
    else:
        jsonschema.validate(thing, schema)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_is_valid(name: str, version: str) -> None:
    objects = overlay(name).objects
    assert len(objects) > 10
    for thing in objects:
        check(thing, version)


@pytest.mark.parametrize("kind", ["Deployment", "NetworkPolicy", "PodDisruptionBudget", "ScaledObject", "PodMonitor"])
def test_a_misspelt_field_is_detected(kind: str) -> None:
    thing = deepcopy(overlay(FULL).of(kind)[0])
    thing["spec"]["misspelt"] = 1
    with pytest.raises(jsonschema.ValidationError, match="misspelt"):
        check(thing, VERSIONS[-1])


def test_a_misspelt_field_of_a_container_is_detected() -> None:
    thing = deepcopy(overlay(FULL).workers[0])
    thing["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(jsonschema.ValidationError, match="livenessprobe"):
        check(thing, VERSIONS[-1])


@pytest.mark.parametrize("name", OVERLAYS)
def test_all_objects_are_in_one_namespace(name: str) -> None:
    objects = overlay(name).objects
    [namespace] = [each["metadata"]["name"] for each in objects if each["kind"] == "Namespace"]
    assert {each["metadata"].get("namespace") for each in objects if each["kind"] != "Namespace"} == {namespace}


@pytest.mark.parametrize("name", OVERLAYS)
def test_object_names_are_unique(name: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in overlay(name).objects]
    assert len(names) == len(set(names))
