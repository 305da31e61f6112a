"""The files of deploy/ are valid for the tools of their kind, and name existing settings and commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import REPOSITORY
from tests.support import tools
from tests.support.deploy.compose_file import COMPOSE, read, services
from tests.support.deploy.compose_runner import PASSWORDS
from tests.support.deploy.dockerfiles import DEPLOY, DOCKERFILES, Image

from latentfarm.server.security.guard import check_exposure
from latentfarm.server.settings import ServerSettings, variables
from latentfarm.settings import Settings

pytestmark = pytest.mark.unit

OURS = ("worker", "producer", "exporter", "server")
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
BUILT = services()
#: read by Hugging Face's libraries, OpenMP, torch, Python, pip and the shell
OTHERS = {"HF_HOME", "HF_TOKEN", "HOME", "OMP_NUM_THREADS", "PATH", "PYTHONUNBUFFERED", "PYTORCH_ALLOC_CONF", "TMPDIR"}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


DOCKER_COMPOSE = shutil.which("docker") is not None and run("docker", "compose", "version").returncode == 0


def tool(name: str) -> str:
    """Return a program of the extra `dev`."""
    return str(Path(sys.executable).with_name(name))


def known_variables() -> set[str]:
    return {*OTHERS, *variables().values()} | {
        str(field.validation_alias or f"LATENTFARM_{name.upper()}") for name, field in Settings.model_fields.items()
    }


def unit_variables(file: Path) -> dict[str, str]:
    pairs = [
        pair for line in re.findall(r"^Environment=(.*)$", file.read_text(), re.MULTILINE) for pair in line.split()
    ]
    return dict(pair.split("=", 1) for pair in pairs)


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def composed(*files: str, profile: str) -> dict[str, Any]:
    """Return the services that `docker compose up` would start."""
    named = [text for file in files for text in ("-f", file)]
    # without a file of passwords, which may exist
    shown = run(
        "docker", "compose", "--env-file", os.devnull, *named, "--profile", profile, "config", "--format", "json"
    )
    assert shown.returncode == 0, shown.stderr
    services = json.loads(shown.stdout)["services"]
    assert isinstance(services, dict)
    return services


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_accepts_a_dockerfile(file: Path) -> None:
    linted = run(tool("hadolint"), str(file))
    assert (linted.returncode, linted.stdout) == (0, "")


def test_actionlint_accepts_the_workflow() -> None:
    linted = run(tool("actionlint"), "-no-color")
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("compose-spec", ["deploy/compose.yaml", "deploy/compose.gpu.yaml"]),
        ("github-workflows", [".github/workflows/ci.yml"]),
    ],
)
def test_the_files_conform_to_the_published_schema(schema: str, files: list[str]) -> None:
    checked = run(tool("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", *files)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.skipif(not DOCKER_COMPOSE, reason="no docker compose here")
def test_docker_compose_reads_the_file_as_the_tests_do() -> None:
    config = composed("deploy/compose.yaml", profile="cpu")
    assert set(BUILT) - set(config) == {"producer", "server"}
    for name, service in config.items():
        assert service.get("environment", {}) == BUILT[name].config.get("environment", {})
        words = [*(service.get("entrypoint") or []), *(service.get("command") or [])]
        assert [word.replace("$$", "$") for word in words] == [
            *BUILT[name].config.get("entrypoint", []),
            *BUILT[name].config.get("command", []),
        ]


@pytest.mark.skipif(not DOCKER_COMPOSE, reason="no docker compose here")
def test_the_gpu_file_gives_the_same_worker_every_gpu_and_prometheus_another_file() -> None:
    plain = composed("deploy/compose.yaml", profile="cpu")
    config = composed("deploy/compose.yaml", "deploy/compose.gpu.yaml", profile="gpu")
    assert config.keys() == plain.keys()
    [gpus] = config["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpus == {"capabilities": ["gpu"], "driver": "nvidia", "count": -1}
    gpu = {"LATENTFARM_DEVICES": "all", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert config["worker"]["environment"] == {**plain["worker"]["environment"], **gpu}
    mounted = {each["target"]: each["source"] for each in config["prometheus"]["volumes"]}
    assert mounted["/etc/prometheus/prometheus.yaml"] == str(DEPLOY / "monitoring" / "prometheus.gpu.yaml")


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_our_services_and_images_is_a_setting(name: str) -> None:
    assert set(BUILT[name].environment) - known_variables() == set()


def test_every_variable_of_the_gpu_file_and_of_systemd_is_a_setting() -> None:
    config = set(read(DEPLOY / "compose.gpu.yaml")["services"]["worker"]["environment"])
    for file in UNITS:
        config |= set(unit_variables(file))
    config |= set(re.findall(r"^(\w+)=", (DEPLOY / "systemd" / "farm.env").read_text(), re.MULTILINE))
    assert config
    assert config - known_variables() == set()


@pytest.mark.parametrize("name", OURS)
def test_a_farm_starts_with_the_settings_of_a_service(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in BUILT[name].environment.items():
        monkeypatch.setenv(variable, value)
    settings = Settings.load().require()
    assert (settings.bucket, settings.model, settings.model_source) == ("latentfarm", "mini", "")
    # the volume is mounted in the folder that the store serves, so it is the bucket
    assert BUILT["s3"].config["volumes"] == [f"bucket:/data/{settings.bucket}"]


def test_both_images_run_unprivileged_and_have_a_health_check() -> None:
    for file in DOCKERFILES:
        image = Image.built_by(file)
        assert image.user == "10001:10001"
        assert image.entrypoint == ["latentfarm"]
        assert image.health == ["python3", "/opt/latentfarm/healthcheck.py"]
    assert len(DOCKERFILES) == 2


@pytest.mark.parametrize("name", BUILT)
def test_every_container_is_unprivileged_and_publishes_ports_on_loopback_only(name: str) -> None:
    config = BUILT[name].config
    assert config["read_only"] is True
    assert config["cap_drop"] == ["ALL"]
    assert config["security_opt"] == ["no-new-privileges:true"]
    assert not [port for port in config.get("ports", []) if not port.startswith("127.0.0.1:")]
    assert not {"privileged", "network_mode", "pid", "ipc", "cap_add", "devices"} & set(config)


@pytest.mark.parametrize("name", BUILT)
def test_foreign_images_have_a_version_and_ours_are_built(name: str) -> None:
    config = BUILT[name].config
    if name in OURS:
        assert config["image"] == f"latentfarm/{'worker' if name == 'worker' else 'producer'}"
    else:
        assert re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", config["image"])


def test_every_mounted_file_exists() -> None:
    mounted = [
        volume.split(":")[0]
        for file in (COMPOSE, DEPLOY / "compose.gpu.yaml")
        for service in read(file)["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert mounted
    assert [path for path in mounted if not (DEPLOY / path).is_file()] == []


def test_make_writes_all_passwords_that_compose_needs() -> None:
    needed = set(re.findall(r"\$\{(\w*(?:PASSWORD|SECRET)\w*)", COMPOSE.read_text()))
    assert needed == set(PASSWORDS)
    makefile = (REPOSITORY / "Makefile").read_text()
    assert [name for name in needed if name not in makefile] == []


def test_no_deadline_kills_a_worker_before_it_has_released_its_jobs() -> None:
    shutdown_s = Settings.model_fields["shutdown_timeout_s"].default
    from latentfarm.local.farm import worker_exit_s

    needed_s = worker_exit_s(Settings())
    assert needed_s > shutdown_s
    assert seconds(BUILT["worker"].config["stop_grace_period"]) > needed_s
    unit = (DEPLOY / "systemd" / "latentfarm-worker.service").read_text()
    [found] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert float(found) > needed_s


def test_the_server_has_keys_a_loopback_port_and_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    service = BUILT["server"]
    for variable, value in service.environment.items():
        monkeypatch.setenv(variable, value)
    settings = ServerSettings()
    check_exposure(settings)
    [secret] = service.config["secrets"]
    assert settings.api_keys_file == Path("/run/secrets") / secret
    assert read()["secrets"][secret]["file"].removeprefix("./") in (REPOSITORY / ".gitignore").read_text()
    port = settings.address.rpartition(":")[2]
    assert service.config["ports"] == [f"127.0.0.1:7860:{port}"]
    [volume] = service.config["volumes"]
    # the process starts in the image's folder
    cache = Path(service.image.folder) / settings.thumbnail_cache
    assert cache.is_relative_to(volume.partition(":")[2])
    # its folder in the image belongs to the image's user, so the volume does
    assert volume.endswith(f":{service.image.folder}")
    assert seconds(service.config["stop_grace_period"]) >= settings.shutdown_timeout_s + 10
    for name in ("prometheus.yaml", "prometheus.gpu.yaml"):
        [scraped] = scrapes(DEPLOY / "monitoring" / name)["latentfarm-server"]["dns_sd_configs"]
        assert (scraped["names"], str(scraped["port"])) == (["server"], port)
    # the name that Prometheus and other containers use
    assert settings.allowed_hosts == "server"


def test_prometheus_scrapes_the_ports_of_the_services() -> None:
    served = {name: BUILT[name].environment.get("LATENTFARM_METRICS_ADDRESS", "") for name in OURS}
    ports = {name: address.rpartition(":")[2] for name, address in served.items()}
    plain, gpu = (scrapes(DEPLOY / "monitoring" / name) for name in ("prometheus.yaml", "prometheus.gpu.yaml"))
    assert plain["latentfarm-exporter"]["static_configs"] == [{"targets": [f"exporter:{ports['exporter']}"]}]
    [needed] = plain["latentfarm-worker"]["dns_sd_configs"]
    assert (needed["names"], str(needed["port"])) == (["worker"], ports["worker"])
    # the only difference: one port for each GPU of a host
    first = int(ports["worker"])
    assert gpu.pop("latentfarm-worker")["dns_sd_configs"] == [{**needed, "port": first + n} for n in range(8)]
    del plain["latentfarm-worker"]
    assert gpu == plain


@pytest.mark.parametrize("name", ["prometheus.yaml", "prometheus.gpu.yaml"])
def test_promtool_accepts_the_configuration_of_prometheus(name: str) -> None:
    # syntax only: the path of the rules is that of the container
    checked = run(tools.find("promtool"), "check", "config", "--syntax-only", f"deploy/monitoring/{name}")
    assert checked.returncode == 0, checked.stderr


def scrapes(file: Path) -> dict[str, dict[str, Any]]:
    return {each["job_name"]: each for each in yaml.safe_load(file.read_text())["scrape_configs"]}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_systemd_accepts_a_unit_and_its_sandbox(file: Path, tmp_path: Path) -> None:
    # the program must exist
    here = tmp_path / file.name
    here.write_text(file.read_text().replace("/opt/latentfarm/bin/latentfarm", tool("latentfarm")))
    checked = run("systemd-analyze", "verify", str(here))
    assert (checked.returncode, checked.stderr) == (0, "")
    judged = run("systemd-analyze", "security", "--offline=true", "--threshold=40", str(here))
    assert judged.returncode == 0, judged.stdout


def test_the_health_check_passes_without_an_address_and_fails_without_an_answer() -> None:
    check = str(DEPLOY / "healthcheck.py")
    assert run(sys.executable, check, LATENTFARM_METRICS_ADDRESS="").returncode == 0
    # no process listens at port 1
    assert run(sys.executable, check, LATENTFARM_METRICS_ADDRESS="0.0.0.0:1").returncode == 1
    server = {"LATENTFARM_METRICS_ADDRESS": "", "LATENTFARM_SERVER_ADDRESS": "0.0.0.0:1"}
    assert run(sys.executable, check, **server).returncode == 1


def test_every_started_command_exists() -> None:
    from typer.main import get_command

    from latentfarm.cli import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    started = {BUILT[name].command[1] for name in ("worker", "exporter", "server")}
    started |= {
        found for file in UNITS for found in re.findall(r"^ExecStart=\S+ (\w+)", file.read_text(), re.MULTILINE)
    }
    assert started == {"worker", "exporter", "serve"}
    assert started <= commands
