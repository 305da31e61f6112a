"""The manifests use existing commands, variables and ports, and deadlines in the right order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.conftest import REPOSITORY
from tests.support.deploy.cluster import OVERLAYS, Object, Overlay, component_of, labels_of, overlay
from typer.main import get_command

import latentfarm
from latentfarm.cli import app
from latentfarm.model_spec import parse_model
from latentfarm.server.security.client_address import ClientAddresses
from latentfarm.server.security.guard import check_exposure
from latentfarm.server.settings import ServerSettings, variables
from latentfarm.settings import Settings

pytestmark = pytest.mark.unit

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
OURS = {str(field.validation_alias or f"LATENTFARM_{name.upper()}") for name, field in Settings.model_fields.items()}
OURS |= set(variables().values())
#: read by boto3, huggingface_hub, torch and the C library
OTHERS = {"AWS_DEFAULT_REGION", "HF_HOME", "HF_TOKEN", "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF", "HOME"}
#: seconds that a process needs to exit after its own deadline
MARGIN_S = 10


def pods() -> list[Any]:
    return [
        pytest.param(overlay(name), template, id=f"{name}-{pod}")
        for name in OVERLAYS
        for pod, template in overlay(name).pods().items()
    ]


def settings_of(kind: Overlay, template: Object, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of a process with a pod's environment; secrets have made-up values."""
    made_up = {"LATENTFARM_REDIS_URL": "rediss://worker:secret@redis.example:6379/0"}
    for name, value in kind.environment(template).items():
        monkeypatch.setenv(name, value if value is not None else made_up.get(name, "secret"))
    return Settings().require()


def probe_s(container: Object, probe: str) -> int:
    found = container[probe]
    return int(found.get("failureThreshold", 3) * found["periodSeconds"])


@pytest.mark.parametrize(("kind", "template"), pods())
def test_every_variable_is_a_known_one(kind: Overlay, template: Object) -> None:
    assert set(kind.environment(template)) - OURS - OTHERS == set()


@pytest.mark.parametrize(("kind", "template"), pods())
def test_the_command_and_its_options_exist(kind: Overlay, template: Object) -> None:
    del kind
    [container] = template["spec"]["containers"]
    # the images' entrypoint is `latentfarm`
    assert "command" not in container
    name, *options = container["args"]
    assert name == {"worker": "worker", "exporter": "exporter", "server": "serve"}[container["name"]]
    COMMANDS[name].make_context(name, options)


@pytest.mark.parametrize(("kind", "template"), pods())
def test_the_probes_use_the_port_of_the_metrics(
    kind: Overlay, template: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    [container] = template["spec"]["containers"]
    address, name = settings_of(kind, template, monkeypatch).metrics_address, "metrics"
    if container["name"] == "server":
        address, name = ServerSettings().address, "http"
    host, _, port = address.rpartition(":")
    assert host == "0.0.0.0"  # noqa: S104 - probes come from the node
    [served] = container["ports"]
    assert (served["name"], served["containerPort"]) == (name, int(port))
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["port"] for probe in probes.values()} == {name}
    assert probes["livenessProbe"]["path"] == "/livez"
    assert probes["readinessProbe"]["path"] == "/readyz"


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_worker_serves_the_model_of_its_label(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_worker_has_enough_time_to_stop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = overlay(name)
    for worker in found.workers:
        pod = worker["spec"]["template"]
        settings = settings_of(found, pod, monkeypatch)
        assert pod["spec"]["terminationGracePeriodSeconds"] >= settings.shutdown_timeout_s + MARGIN_S


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_stall_timeout_is_shorter_than_the_liveness_probe_and_the_startup_probe_than_the_rollout(
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
def test_a_worker_writes_to_volumes_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert image == ("latentfarm/worker" if pod.startswith("latentfarm-worker") else "latentfarm/producer")


@pytest.mark.parametrize("name", OVERLAYS)
def test_workers_and_the_server_reach_their_redis_and_their_store(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = overlay(name)
    for deployment in (*found.workers, found.server):
        [egress] = found.one("NetworkPolicy", f"latentfarm-{component_of(deployment)}")["spec"]["egress"]
        ports = {each["port"] for each in egress["ports"]}
        settings = settings_of(found, deployment["spec"]["template"], monkeypatch)
        assert urlsplit(settings.redis_url).port in ports
        store = urlsplit(settings.s3_endpoint_url or "https://s3.amazonaws.com")
        assert (store.port or {"https": 443, "http": 80}[store.scheme]) in ports


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_server_has_keys_names_and_time_to_stop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = overlay(name)
    pod = found.server["spec"]["template"]
    settings_of(found, pod, monkeypatch)
    settings = ServerSettings()
    check_exposure(settings)
    [container] = pod["spec"]["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts[str(settings.api_keys_file.parent)] == "api-keys"  # type: ignore[union-attr]
    assert settings.thumbnail_cache.is_relative_to("/tmp")  # noqa: S108
    assert mounts["/tmp"] == "tmp"  # noqa: S108
    service = found.one("Service", "latentfarm-server")["metadata"]
    names = settings.allowed_hosts.split(",")
    assert {service["name"], f"{service['name']}.{service['namespace']}.svc"} <= set(names)
    before_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] >= before_s + settings.shutdown_timeout_s + MARGIN_S
    for ingress in found.of("Ingress"):
        [rule] = ingress["spec"]["rules"]
        assert [rule["host"]] == ingress["spec"]["tls"][0]["hosts"] == names[:1]
        assert ClientAddresses(settings.trusted_proxies)
        annotations = ingress["metadata"]["annotations"]
        assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{settings.max_file_bytes // 2**30}g"
        assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > settings.render_timeout_s
    assert bool(found.of("Ingress")) == ("autoscaled" in name)


@pytest.mark.parametrize("name", OVERLAYS)
def test_only_spot_workers_reach_the_instance_metadata_service(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = overlay(name)
    providers = {settings_of(found, each["spec"]["template"], monkeypatch).spot_provider for each in found.workers}
    place = urlsplit(Settings.model_fields["metadata_url"].default)
    reachable = [
        (peer["ipBlock"]["cidr"], rule["ports"])
        for policy in found.of("NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    ]
    expected = [(f"{place.hostname}/32", [{"protocol": "TCP", "port": place.port or 80}])]
    assert reachable == (expected if providers == {"aws"} else [])
    assert providers == ({"aws"} if "spot" in name else {""})


def test_the_settings_of_torchs_allocator_are_the_users_own_or_those_of_the_gpu_deployments() -> None:
    show = "import os, latentfarm_worker; print(*(f'{k}={v}' for k, v in os.environ.items() if 'ALLOC_CONF' in k))"

    def seen(own: dict[str, str]) -> str:
        bare = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
        command = [sys.executable, "-c", show]
        return subprocess.run(command, env=bare | own, capture_output=True, text=True, check=True).stdout.strip()

    default = seen({})
    for own in ("PYTORCH_ALLOC_CONF=backend:native", "PYTORCH_CUDA_ALLOC_CONF=backend:native"):
        assert seen(dict([own.split("=")])) == own
    [compose] = re.findall(r"PYTORCH_ALLOC_CONF:-(.*)}", (REPOSITORY / "deploy" / "compose.gpu.yaml").read_text())
    for name in OVERLAYS:
        for worker in overlay(name).workers:
            set_by = overlay(name).environment(worker["spec"]["template"]).get("PYTORCH_ALLOC_CONF")
            assert set_by == (compose if "gpu" in name else None)
    assert default == f"PYTORCH_ALLOC_CONF={compose}"


def test_the_readme_creates_every_secret_that_a_pod_needs() -> None:
    text = (REPOSITORY / "deploy" / "kubernetes" / "README.md").read_text()
    needed = {
        (each["valueFrom"]["secretKeyRef"]["name"], each["valueFrom"]["secretKeyRef"]["key"])
        for name in OVERLAYS
        for template in overlay(name).pods().values()
        for each in template["spec"]["containers"][0]["env"]
        if "valueFrom" in each
    }
    needed |= {
        (volume["secret"]["secretName"], "api-keys.txt")
        for name in OVERLAYS
        for template in overlay(name).pods().values()
        for volume in template["spec"]["volumes"]
        if "secret" in volume
    }
    assert len(needed) == 10
    for secret, key in needed:
        assert f"create secret generic {secret} " in text
        assert key in text
    # no secret is in the repository
    assert not [each for name in OVERLAYS for each in overlay(name).of("Secret")]
