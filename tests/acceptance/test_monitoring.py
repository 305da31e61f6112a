"""The processes of deploy/ run, and a real Prometheus answers the queries of dashboard, alerts and KEDA from them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from tests.conftest import REPOSITORY, until
from tests.support import tools
from tests.support.deploy.cluster import overlay
from tests.support.deploy.metrics import CUDA, EXPORTER, SERVER, TARGET, WORKER, metrics_of
from tests.support.machines import Machine, free_ports
from tests.support.scraping import http_get

from latentfarm import Farm
from latentfarm.local.process import ManagedProcess
from latentfarm.server.security.keys import new_key
from latentfarm.settings import Settings
from latentfarm.storage.keys import manifest_key
from latentfarm.storage.part_codec import pack, unpack

pytestmark = pytest.mark.acceptance

MONITORING = REPOSITORY / "deploy" / "monitoring"
JOBS = 60
ROW = {"num_inference_steps": 4, "width": 64, "height": 64}
#: values of Grafana's variables, for scrapes a second apart
VARIABLES = {r"\$__rate_interval": "1m", r"\$\w+": ".*"}


class Prometheus:
    """Queries a running server."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **parameters: str) -> Any:
        status, body = http_get(self._address, f"/api/v1/{path}?{urlencode(parameters)}")
        assert status == 200, body
        return json.loads(body)["data"]

    def values(self, query: str) -> list[float]:
        """Return the values of the series that a query gives."""
        return [float(series["value"][1]) for series in self.get("query", query=query)["result"]]

    def states_of_rules(self) -> set[str]:
        return {rule["state"] for group in self.get("rules")["groups"] for rule in group["rules"]}

    def labels(self, job: str) -> dict[str, set[str]]:
        """Return the labels of each latentfarm metric of a target."""
        found: dict[str, set[str]] = {}
        for series in self.get("series", **{"match[]": f'{{__name__=~"latentfarm_.+",job="{job}"}}'}):
            found.setdefault(series.pop("__name__"), set()).update(set(series) - TARGET)
        return found

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        try:
            return http_get(self._address, "/-/ready")[0] == 200
        except ConnectionRefusedError:
            return False


@contextmanager
def prometheus(folder: Path, targets: dict[str, str]) -> Iterator[Prometheus]:
    """Run one that scrapes these addresses, by the job's name, every second."""
    folder.mkdir()
    (folder / "prometheus.yaml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(MONITORING / "alerts.yaml")],
                "scrape_configs": [
                    {"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in targets.items()
                ],
            }
        )
    )
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [tools.find("prometheus"), "--config.file=prometheus.yaml", f"--web.listen-address={address}"]
    shell = ["sh", "-c", 'cd "$0" && exec "$@"', str(folder), *command, "--storage.tsdb.path=data"]
    child = ManagedProcess("prometheus", shell, log=folder / "log")
    try:
        server = Prometheus(address)
        until(lambda: server.ready, timeout_s=30)
        yield server
    finally:
        child.terminate()
        child.wait_or_kill(10)


def queries() -> dict[str, str]:
    """Return the dashboard's queries by their panels, with what Grafana would put in."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    found = {}
    for panel in panels:
        for target in panel.get("targets", []):
            query = target["expr"]
            for variable, value in VARIABLES.items():
                query = re.sub(variable, value, query)
            found[f"{panel['title']} {target['refId']}"] = query
    return found


def unanswered(server: Prometheus, wanted: dict[str, str]) -> dict[str, str]:
    """Return the queries whose answer has no finite value."""
    answers = {name: server.values(query) for name, query in wanted.items()}
    return {name: wanted[name] for name, found in answers.items() if not any(map(math.isfinite, found))}


def test_a_run_answers_every_query_and_raises_no_alert(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes have the arguments, probes and environment of the overlay cpu, except for addresses."""
    cluster = overlay("cpu")
    pods = {
        name: cluster.one("Deployment", f"latentfarm-{name}")["spec"]["template"]
        for name in ("worker-mini", "exporter", "server")
    }
    for template in pods.values():
        for name, value in cluster.environment(template).items():
            if value is not None:
                monkeypatch.setenv(name, value)
    secret, key = new_key("alice", "read,submit")
    keys = tmp_path / "api-keys.txt"
    keys.write_text(key.line)
    monkeypatch.setenv("LATENTFARM_API_KEYS_FILE", str(keys))
    monkeypatch.setenv("LATENTFARM_SERVER_THUMBNAIL_CACHE", str(tmp_path / "thumbnails"))
    farm = Farm.open(settings)
    batch = farm.submit([{"prompt": f"image {n}", **ROW} for n in range(JOBS)], batch="seen")
    # one job fails, so that there is an error code to report
    lines = unpack(farm.bucket.get(manifest_key("seen", 0)))
    farm.bucket.put(manifest_key("seen", 0), pack([{**lines[0], "width": 16_384}, *lines[1:]]))
    containers = {name: template["spec"]["containers"][0] for name, template in pods.items()}
    with machines(tmp_path, settings.model_copy(update={"slots": 4}), containers) as running:
        targets = {name: machine.address for name, machine in running.items()}
        with prometheus(tmp_path / "prometheus", targets) as server:
            ended = batch.wait(timeout_s=120)
            assert (ended.done, ended.failed) == (JOBS - 1, 1)
            until(lambda: running["server"].ready, timeout_s=30)
            render_image(running["server"].address, secret)
            wanted = {name: query for name, query in queries().items() if not set(metrics_of(query)) & set(CUDA)}
            assert len(wanted) == len(queries()) - 1
            until(lambda: not unanswered(server, wanted), timeout_s=30)
            # those of the batch, and one that a client waited for
            until(lambda: server.values('latentfarm_images_total{outcome="done"}') == [JOBS], timeout_s=30)
            assert server.values("latentfarm_server_images_total") == [1]
            assert server.values("latentfarm_batch_failures") == [1]
            assert without_created(server.labels("worker-mini")) == WORKER
            assert without_created(server.labels("exporter")) == EXPORTER
            assert without_created(server.labels("server")) == SERVER

            rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
            assert {rule["health"] for rule in rules} == {"ok"}
            assert "firing" not in server.states_of_rules()
            # the last evaluation may have seen jobs before the first image
            until(lambda: server.states_of_rules() == {"inactive"}, timeout_s=30)

            # the scaler's queries, for the model that was served
            [thing] = [each for each in overlay("gpu-spot-autoscaled").of("ScaledObject") if "sd14" in str(each)]
            triggers = [each["metadata"]["valueLocation"].replace("sd14", "mini") for each in thing["spec"]["triggers"]]
            # the exporter may have been scraped last while jobs waited
            until(lambda: [server.values(query) for query in triggers] == [[0]] * len(triggers), timeout_s=30)

        for name, container in containers.items():
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert http_get(running[name].address, container[probe]["httpGet"]["path"])[0] == 200
        worker = running["worker-mini"].child
        worker.terminate()
        assert worker.wait_or_kill(pods["worker-mini"]["spec"]["terminationGracePeriodSeconds"]) == 0


def render_image(address: str, key: str) -> None:
    """Render an image as a client of the HTTP server."""
    body = json.dumps({"prompt": "a red circle", "steps": 4, "width": 64, "height": 64})
    connection = HTTPConnection(address, timeout=60)
    with closing(connection):
        headers = {"Content-Type": "application/json", "X-API-Key": key}
        connection.request("POST", "/sdapi/v1/txt2img", body, headers)
        answer = connection.getresponse()
        assert (answer.status, len(json.loads(answer.read())["images"])) == (200, 1)


@contextmanager
def machines(folder: Path, settings: Settings, containers: dict[str, Any]) -> Iterator[dict[str, Machine]]:
    """Run the processes of containers; stop them at the end."""
    running: dict[str, Machine] = {}
    try:
        for name, container in containers.items():
            running[name] = Machine.start(folder / name, settings, free_ports(1)[0], *container["args"])
        yield running
    finally:
        for machine in running.values():
            machine.child.terminate()
        for machine in running.values():
            machine.child.wait_or_kill(40)


def without_created(metrics: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out the creation times, which OpenMetrics adds to each counter."""
    return {name: labels for name, labels in metrics.items() if not name.endswith("_created")}
