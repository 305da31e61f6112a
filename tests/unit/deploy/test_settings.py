"""What the manifests tell the code is what the code understands: commands, variables, ports, deadlines."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.conftest import REPOSITORY
from tests.unit.deploy.cluster import OVERLAYS, Object, Overlay, labels_of, overlay
from typer.main import get_command

import latentfarm
from latentfarm.cli import app
from latentfarm.model_spec import parse_model
from latentfarm.settings import Settings

pytestmark = pytest.mark.unit

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
OURS = {str(field.validation_alias or f"LATENTFARM_{name.upper()}") for name, field in Settings.model_fields.items()}
#: boto3, huggingface_hub, torch and the C library read these
OTHERS = {"AWS_DEFAULT_REGION", "HF_HOME", "HF_TOKEN", "OMP_NUM_THREADS", "HOME"}
#: the least that a process needs to end after its own deadline
MARGIN_S = 10


def pods() -> list[Any]:
    return [
        pytest.param(overlay(name), template, id=f"{name}-{pod}")
        for name in OVERLAYS
        for pod, template in overlay(name).pods().items()
    ]


def settings_of(kind: Overlay, template: Object, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return what a process with a pod's environment reads; secrets have made-up values."""
    made_up = {"LATENTFARM_REDIS_URL": "rediss://worker:secret@redis.example:6379/0"}
    for name, value in kind.environment(template).items():
        monkeypatch.setenv(name, value if value is not None else made_up.get(name, "secret"))
    return Settings().require()


def probe_s(container: Object, probe: str) -> int:
    found = container[probe]
    return int(found.get("failureThreshold", 3) * found["periodSeconds"])


@pytest.mark.parametrize(("kind", "template"), pods())
def test_every_variable_is_one_that_somebody_reads(kind: Overlay, template: Object) -> None:
    assert set(kind.environment(template)) - OURS - OTHERS == set()


@pytest.mark.parametrize(("kind", "template"), pods())
def test_the_command_and_its_options_are_ours(kind: Overlay, template: Object) -> None:
    del kind
    [container] = template["spec"]["containers"]
    # the images' entrypoint is `latentfarm`
    assert "command" not in container
    name, *options = container["args"]
    assert name == {"worker": "worker", "exporter": "exporter"}[container["name"]]
    COMMANDS[name].make_context(name, options)


@pytest.mark.parametrize(("kind", "template"), pods())
def test_the_port_of_the_probes_is_the_one_that_is_served(
    kind: Overlay, template: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    [container] = template["spec"]["containers"]
    host, _, port = settings_of(kind, template, monkeypatch).metrics_address.rpartition(":")
    assert host == "0.0.0.0"  # noqa: S104 - probes come from the node
    [served] = container["ports"]
    assert (served["name"], served["containerPort"]) == ("metrics", int(port))
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["port"] for probe in probes.values()} == {"metrics"}
    assert probes["livenessProbe"]["path"] == "/livez"
    assert probes["readinessProbe"]["path"] == "/readyz"


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_worker_serves_the_model_that_it_is_labelled_with(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = overlay(name)
    aliases = []
    for worker in found.workers:
        template = worker["spec"]["template"]
        settings = settings_of(found, template, monkeypatch)
        aliases.append(settings.model)
        assert labels_of(worker)["latentfarm/model"] == labels_of(template)["latentfarm/model"] == settings.model
        assert worker["metadata"]["name"] == f"latentfarm-worker-{settings.model}"
        assert parse_model(f"{settings.model}={settings.model_source}" if settings.model_source else settings.model)
        for variable in found.environment(template):
            monkeypatch.delenv(variable)
    assert aliases
    assert len(aliases) == len(set(aliases))


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_worker_has_the_time_that_it_takes_to_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = overlay(name)
    for worker in found.workers:
        pod = worker["spec"]["template"]
        settings = settings_of(found, pod, monkeypatch)
        assert pod["spec"]["terminationGracePeriodSeconds"] >= settings.shutdown_timeout_s + MARGIN_S


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_supervisor_comes_before_the_kubelet_and_the_kubelet_before_the_rollout(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = overlay(name)
    for worker in found.workers:
        [container] = worker["spec"]["template"]["spec"]["containers"]
        settings = settings_of(found, worker["spec"]["template"], monkeypatch)
        assert probe_s(container, "livenessProbe") > settings.stall_timeout_s
        assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
        assert worker["spec"]["progressDeadlineSeconds"] > probe_s(container, "startupProbe") >= 1800


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_a_worker_writes_goes_to_a_volume(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = overlay(name)
    for worker in found.workers:
        pod = worker["spec"]["template"]
        [container] = pod["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounts["/tmp"] == "tmp"  # noqa: S108
        [cache] = [path for path, volume in mounts.items() if volume == "cache"]
        assert settings_of(found, pod, monkeypatch).cache_dir.is_relative_to(cache)
        environment = found.environment(pod)
        assert str(environment["HF_HOME"]).startswith(f"{cache}/")
        assert environment["HOME"] == "/tmp"  # noqa: S108


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_image_has_the_tag_of_this_version(name: str) -> None:
    images = {
        pod: template["spec"]["containers"][0]["image"].rpartition(":")
        for pod, template in overlay(name).pods().items()
    }
    assert {tag for _, _, tag in images.values()} == {latentfarm.__version__}
    for pod, (image, _, _) in images.items():
        assert image == ("latentfarm/producer" if pod == "latentfarm-exporter" else "latentfarm/worker")


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_worker_may_reach_what_it_is_told_of(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = overlay(name)
    [policy] = [each for each in found.of("NetworkPolicy") if each["metadata"]["name"] == "latentfarm-worker"]
    [egress] = policy["spec"]["egress"]
    ports = {each["port"] for each in egress["ports"]}
    for worker in found.workers:
        settings = settings_of(found, worker["spec"]["template"], monkeypatch)
        assert urlsplit(settings.redis_url).port in ports
        store = urlsplit(settings.s3_endpoint_url or "https://s3.amazonaws.com")
        assert (store.port or {"https": 443, "http": 80}[store.scheme]) in ports


@pytest.mark.parametrize("name", OVERLAYS)
def test_notices_of_spot_instances_are_reachable_where_they_are_looked_for_and_nowhere_else(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = overlay(name)
    looked_for = {settings_of(found, each["spec"]["template"], monkeypatch).spot_provider for each in found.workers}
    place = urlsplit(Settings.model_fields["metadata_url"].default)
    reachable = [
        (peer["ipBlock"]["cidr"], rule["ports"])
        for policy in found.of("NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    ]
    expected = [(f"{place.hostname}/32", [{"protocol": "TCP", "port": place.port or 80}])]
    assert reachable == (expected if looked_for == {"aws"} else [])
    assert looked_for == ({"aws"} if "spot" in name else {""})


def test_the_readme_creates_every_secret_that_is_asked_for() -> None:
    text = (REPOSITORY / "deploy" / "kubernetes" / "README.md").read_text()
    asked = {
        (each["valueFrom"]["secretKeyRef"]["name"], each["valueFrom"]["secretKeyRef"]["key"])
        for name in OVERLAYS
        for template in overlay(name).pods().values()
        for each in template["spec"]["containers"][0]["env"]
        if "valueFrom" in each
    }
    assert len(asked) == 6
    for secret, key in asked:
        assert f"create secret generic {secret} " in text
        assert key in text
    # the secrets themselves are nowhere
    assert not [each for name in OVERLAYS for each in overlay(name).of("Secret")]
