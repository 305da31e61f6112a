"""References between the objects of an overlay: selectors, permissions, network policies, scaling."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from tests.conftest import REPOSITORY
from tests.support.deploy.cluster import KUBERNETES, OVERLAYS, Object, Overlay, labels_of, overlay, render, selects

from latentfarm.server.app import OPERATIONS
from latentfarm.server.http.operation import Scope

pytestmark = pytest.mark.unit

GPU = [name for name in OVERLAYS if "gpu" in name]
AUTOSCALED = [name for name in OVERLAYS if "autoscaled" in name]
MODEL_LABEL = "latentfarm/model"


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_deployment_selects_its_own_pods_only(name: str) -> None:
    deployments = overlay(name).of("Deployment")
    for one in deployments:
        found = [
            each["metadata"]["name"]
            for each in deployments
            if selects(one["spec"]["selector"], each["spec"]["template"])
        ]
        assert found == [one["metadata"]["name"]]


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_model_has_a_disruption_budget_of_its_own(name: str) -> None:
    found = overlay(name)
    for worker in found.workers:
        budgets = [
            each
            for each in found.of("PodDisruptionBudget")
            if selects(each["spec"]["selector"], worker["spec"]["template"])
        ]
        assert [each["metadata"]["name"] for each in budgets] == [worker["metadata"]["name"]]
        assert budgets[0]["spec"]["maxUnavailable"] == 1
    budget = found.one("PodDisruptionBudget", "latentfarm-server")
    assert selects(budget["spec"]["selector"], found.server["spec"]["template"])
    assert len(found.of("PodDisruptionBudget")) == len(found.workers) + 1


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_name_that_a_pod_refers_to_exists(name: str) -> None:
    found = overlay(name)
    for template in found.pods().values():
        spec = template["spec"]
        assert found.one("ServiceAccount", spec["serviceAccountName"])
        assert found.environment(template)
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == set(volumes)
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert "emptyDir" not in volume
                assert found.one("PersistentVolumeClaim", claim["claimName"])["spec"]["accessModes"] == [
                    "ReadWriteMany"
                ]


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_has_the_least_privileges(name: str) -> None:
    found = overlay(name)
    [namespace] = found.of("Namespace")
    assert labels_of(namespace)["pod-security.kubernetes.io/enforce"] == "restricted"
    for template in found.pods().values():
        spec = template["spec"]
        [container] = spec["containers"]
        assert (
            spec["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001}.items()
        )
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        kinds = {kind for volume in spec["volumes"] for kind in volume}
        # a file, because it is read again when it changes; others are variables
        assert kinds <= {"name", "emptyDir", "persistentVolumeClaim"} | (
            {"secret"} if container["name"] == "server" else set()
        )
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"]["cpu"]


@pytest.mark.parametrize("name", GPU)
def test_a_gpu_worker_requests_one_gpu_and_tolerates_gpu_nodes(name: str) -> None:
    for worker in overlay(name).workers:
        spec = worker["spec"]["template"]["spec"]
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]


def test_the_cpu_overlay_requests_no_gpu_and_downloads_nothing() -> None:
    found = overlay("cpu")
    for worker in found.workers:
        spec = worker["spec"]["template"]["spec"]
        assert set(spec["containers"][0]["resources"]["limits"]) == {"memory"}
        assert spec["tolerations"] == []
        assert "LATENTFARM_MODEL_SOURCE" not in found.environment(worker["spec"]["template"])


def test_a_spot_worker_runs_on_spot_nodes_only_and_tolerates_their_taints() -> None:
    for worker in overlay("gpu-spot-autoscaled").workers:
        spec = worker["spec"]["template"]["spec"]
        terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert len(terms) == 4
        assert {each["key"] for each in spec["tolerations"]} == {
            "nvidia.com/gpu",
            "cloud.google.com/gke-spot",
            "kubernetes.azure.com/scalesetpriority",
        }


# -- the network ---------------------------------------------------------------------------------------------


def allowed_into(found: Overlay, template: Object) -> list[Object]:
    """Return the ingress rules of these pods."""
    policies = [each["spec"] for each in found.of("NetworkPolicy")]
    return [rule for spec in policies if selects(spec["podSelector"], template) for rule in spec.get("ingress", [])]


def namespaces_of(rules: list[Object]) -> set[str]:
    """Return the names, or the label, of the namespaces that rules allow."""
    peers = [peer["namespaceSelector"]["matchLabels"] for rule in rules for peer in rule["from"]]
    return {labels.get("kubernetes.io/metadata.name") or "=".join(*labels.items()) for labels in peers}


@pytest.mark.parametrize("name", OVERLAYS)
def test_all_traffic_is_denied_by_default(name: str) -> None:
    spec = overlay(name).one("NetworkPolicy", "latentfarm-default-deny")["spec"]
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_other_policy_selects_a_pod_and_allows_something(name: str) -> None:
    found = overlay(name)
    for policy in found.of("NetworkPolicy"):
        spec = policy["spec"]
        assert any(selects(spec["podSelector"], template) for template in found.pods().values())
        assert {"Ingress": "ingress" in spec, "Egress": "egress" in spec} == {
            kind: kind in spec["policyTypes"] and policy["metadata"]["name"] != "latentfarm-default-deny"
            for kind in ("Ingress", "Egress")
        }


def test_only_prometheus_keda_and_clients_of_the_server_reach_pods_and_only_their_port() -> None:
    found = overlay("gpu-spot-autoscaled")
    exporter, worker = found.exporter["spec"]["template"], found.workers[0]["spec"]["template"]
    assert namespaces_of(allowed_into(found, exporter)) == {"monitoring", "keda"}
    assert namespaces_of(allowed_into(found, worker)) == {"monitoring"}
    for rule in [*allowed_into(found, exporter), *allowed_into(found, worker)]:
        assert rule["ports"] == [{"protocol": "TCP", "port": "metrics"}]
    server = allowed_into(found, found.server["spec"]["template"])
    # the policy for metrics selects this pod too, which has no port of that name
    assert namespaces_of(server) == {"monitoring", "latentfarm/client=true"}
    assert [rule["ports"][0]["port"] for rule in server].count("http") == 2


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_without_monitoring_only_the_server_is_reached(name: str) -> None:
    found = overlay(name)
    for pod, template in found.pods().items():
        expected = {"latentfarm/client=true"} if pod == "latentfarm-server" else set()
        assert namespaces_of(allowed_into(found, template)) == expected


# -- scaling and monitoring ----------------------------------------------------------------------------------


def scaled(name: str) -> list[Any]:
    found = overlay(name)
    return [pytest.param(found, each, id=each["metadata"]["name"]) for each in found.of("ScaledObject")]


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_autoscaled_overlays_scale_every_model_and_set_no_replicas(name: str) -> None:
    found = overlay(name)
    targets = {each["spec"]["scaleTargetRef"]["name"] for each in found.of("ScaledObject")}
    assert targets == ({each["metadata"]["name"] for each in found.workers} if name in AUTOSCALED else set())
    assert all(("replicas" in each["spec"]) == (name not in AUTOSCALED) for each in found.workers)


@pytest.mark.parametrize(("found", "thing"), [case for name in AUTOSCALED for case in scaled(name)])
def test_a_model_is_scaled_by_its_jobs_as_the_exporter_reports_them(found: Overlay, thing: Object) -> None:
    worker = found.one("Deployment", thing["spec"]["scaleTargetRef"]["name"])
    alias = labels_of(worker)[MODEL_LABEL]
    triggers = {each["name"]: each["metadata"] for each in thing["spec"]["triggers"]}
    assert {name: metadata["valueLocation"] for name, metadata in triggers.items()} == {
        state: f'latentfarm_model_jobs{{model="{alias}",state="{state}"}}' for state in ("pending", "leased")
    }
    # leased jobs keep one worker and start no more
    assert int(triggers["leased"]["targetValue"]) >= 1_000_000
    assert 0 < int(triggers["pending"]["targetValue"]) < 10_000
    assert thing["spec"]["minReplicaCount"] == 0 < thing["spec"]["maxReplicaCount"]
    assert {each["type"] for each in thing["spec"]["triggers"]} == {"metrics-api"}


@pytest.mark.parametrize(("found", "thing"), [case for name in AUTOSCALED for case in scaled(name)])
def test_keda_queries_the_exporters_service(found: Overlay, thing: Object) -> None:
    service = found.one("Service", "latentfarm-exporter")
    [port] = service["spec"]["ports"]
    for trigger in thing["spec"]["triggers"]:
        url = urlsplit(trigger["metadata"]["url"])
        assert url.hostname == f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
        assert (url.scheme, url.port, url.path) == ("http", port["port"], "/metrics")
        assert trigger["metadata"]["format"] == "prometheus"
    template = found.exporter["spec"]["template"]
    assert service["spec"]["selector"].items() <= labels_of(template).items()
    [served] = template["spec"]["containers"][0]["ports"]
    assert port["targetPort"] == served["name"]
    assert port["port"] == served["containerPort"]


def test_the_operator_scrapes_every_worker_the_exporter_and_the_server() -> None:
    found = overlay("gpu-spot-autoscaled")
    [pods] = found.of("PodMonitor")
    for template in found.pods().values():
        is_worker = MODEL_LABEL in labels_of(template)
        assert selects(pods["spec"]["selector"], template) == is_worker
    [endpoint] = pods["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")
    for name in ("latentfarm-exporter", "latentfarm-server"):
        service, monitor = found.one("Service", name), found.one("ServiceMonitor", name)
        assert selects(monitor["spec"]["selector"], service)
        [endpoint] = monitor["spec"]["endpoints"]
        assert (endpoint["port"], endpoint["path"]) == (service["spec"]["ports"][0]["name"], "/metrics")
        assert selects({"matchLabels": service["spec"]["selector"]}, found.one("Deployment", name)["spec"]["template"])
    assert len(found.of("ServiceMonitor")) == 2


def test_the_ingress_leads_to_the_server_without_its_metrics_and_its_probes() -> None:
    found = overlay("gpu-spot-autoscaled")
    [ingress], server = found.of("Ingress"), found.one("Service", "latentfarm-server")
    [rule] = ingress["spec"]["rules"]
    paths = {each["path"]: each["pathType"] for each in rule["http"]["paths"]}
    prefixes = ("/v1", "/sdapi/v1", "/controlnet", "/api", "/batches", "/workers", "/submit", "/dashboard")
    assert paths == {**dict.fromkeys(prefixes, "Prefix"), "/": "Exact"}
    expected = {"name": server["metadata"]["name"], "port": {"name": server["spec"]["ports"][0]["name"]}}
    assert all(each["backend"]["service"] == expected for each in rule["http"]["paths"])
    unkeyed = {operation.path for operation in OPERATIONS if operation.scope is Scope.NONE}
    served = {operation.path for operation in OPERATIONS if operation.path.startswith(prefixes)} | {"/"}
    assert {operation.path for operation in OPERATIONS} - served == {"/livez", "/readyz", "/metrics"} <= unkeyed


def test_the_cluster_has_the_alerts_and_the_dashboard_of_the_monitoring_folder() -> None:
    found = overlay("gpu-spot-autoscaled")
    [rule] = found.of("PrometheusRule")
    monitoring = REPOSITORY / "deploy" / "monitoring"
    assert rule["spec"] == yaml.safe_load((monitoring / "alerts.yaml").read_text()), "run make docs"
    dashboard = found.one("ConfigMap", "latentfarm-dashboard")
    assert labels_of(dashboard)["grafana_dashboard"] == "1"
    assert dashboard["data"] == {"latentfarm.json": (monitoring / "dashboard.json").read_text()}


# -- the readme ----------------------------------------------------------------------------------------------


def test_the_readmes_one_file_adds_a_model(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "deploy", tmp_path / "deploy")
    folder = tmp_path / "deploy" / "kubernetes" / "overlays" / "gpu-spot-autoscaled"
    text = (KUBERNETES / "README.md").read_text()
    [(place, content)] = re.findall(
        r"`overlays/gpu-spot-autoscaled/(\S+)`:\n\n```yaml\n(.*?)```", text, flags=re.DOTALL
    )
    file = folder / place
    [patches] = re.findall(r"```yaml\n(patches:.*?)```", text, flags=re.DOTALL)
    file.parent.mkdir()
    file.write_text(content + patches)
    kustomization = folder / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("  - sdxl\n", f"  - sdxl\n  - {file.parent.name}\n"))
    before, after = overlay("gpu-spot-autoscaled"), render(folder)
    names = {(each["kind"], re.sub(r"-[a-z0-9]{10}$", "", each["metadata"]["name"])) for each in after.objects}
    old = {(each["kind"], re.sub(r"-[a-z0-9]{10}$", "", each["metadata"]["name"])) for each in before.objects}
    alias = file.parent.name
    assert names - old == {
        ("ConfigMap", f"latentfarm-model-{alias}"),
        ("Deployment", f"latentfarm-worker-{alias}"),
        ("PodDisruptionBudget", f"latentfarm-worker-{alias}"),
        ("ScaledObject", f"latentfarm-worker-{alias}"),
    }
    spec = after.one("ScaledObject", f"latentfarm-worker-{alias}")["spec"]
    assert (spec["maxReplicaCount"], spec["triggers"][0]["metadata"]["targetValue"]) == (100, "2000")


def test_the_readme_names_every_overlay_and_component() -> None:
    text = (KUBERNETES / "README.md").read_text()
    components = [file.parent for file in (KUBERNETES / "components").rglob("kustomization.yaml")]
    assert len(components) == 9
    for folder in [*components, *(KUBERNETES / "overlays" / name for name in OVERLAYS)]:
        assert f"`{folder.relative_to(KUBERNETES)}`" in text, folder
