"""The files of deploy/, held against the tools that know their kind and against the settings that they name."""

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
from tests.deploy.composition import COMPOSE, read, services
from tests.deploy.dockerfiles import DEPLOY, DOCKERFILES, Image
from tests.deploy.stand import PASSWORDS
from tests.support import tools

from latentfarm.settings import Settings

pytestmark = pytest.mark.unit

OURS = ("worker", "producer", "exporter")
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
BUILT = services()
#: what others read: Hugging Face's libraries, OpenMP, Python, pip, the shell
OTHERS = {"HF_HOME", "HF_TOKEN", "HOME", "OMP_NUM_THREADS", "PATH", "PYTHONUNBUFFERED"}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


DOCKER_COMPOSE = shutil.which("docker") is not None and run("docker", "compose", "version").returncode == 0


def tool(name: str) -> str:
    """Return a program that the extra `dev` brings."""
    return str(Path(sys.executable).with_name(name))


def known_variables() -> set[str]:
    return OTHERS | {
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
    # without a file of passwords that may lie there
    shown = run(
        "docker", "compose", "--env-file", os.devnull, *named, "--profile", profile, "config", "--format", "json"
    )
    assert shown.returncode == 0, shown.stderr
    services = json.loads(shown.stdout)["services"]
    assert isinstance(services, dict)
    return services


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_has_nothing_to_say_of_a_dockerfile(file: Path) -> None:
    linted = run(tool("hadolint"), str(file))
    assert (linted.returncode, linted.stdout) == (0, "")


def test_actionlint_has_nothing_to_say_of_the_workflow() -> None:
    linted = run(tool("actionlint"), "-no-color")
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("compose-spec", ["deploy/compose.yaml", "deploy/compose.gpu.yaml"]),
        ("github-workflows", [".github/workflows/ci.yml"]),
    ],
)
def test_the_files_keep_to_the_published_schema_of_their_kind(schema: str, files: list[str]) -> None:
    checked = run(tool("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", *files)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.skipif(not DOCKER_COMPOSE, reason="no docker compose here")
def test_docker_compose_itself_reads_the_file_as_the_tests_do() -> None:
    told = composed("deploy/compose.yaml", profile="cpu")
    assert set(BUILT) - set(told) == {"producer"}
    for name, service in told.items():
        assert service.get("environment", {}) == BUILT[name].told.get("environment", {})
        words = [*(service.get("entrypoint") or []), *(service.get("command") or [])]
        assert [word.replace("$$", "$") for word in words] == [
            *BUILT[name].told.get("entrypoint", []),
            *BUILT[name].told.get("command", []),
        ]


@pytest.mark.skipif(not DOCKER_COMPOSE, reason="no docker compose here")
def test_the_gpu_file_gives_the_same_worker_every_gpu_and_prometheus_another_file() -> None:
    plain = composed("deploy/compose.yaml", profile="cpu")
    told = composed("deploy/compose.yaml", "deploy/compose.gpu.yaml", profile="gpu")
    assert told.keys() == plain.keys()
    [gpus] = told["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpus == {"capabilities": ["gpu"], "driver": "nvidia", "count": -1}
    assert told["worker"]["environment"] == {**plain["worker"]["environment"], "LATENTFARM_DEVICES": "all"}
    mounted = {each["target"]: each["source"] for each in told["prometheus"]["volumes"]}
    assert mounted["/etc/prometheus/prometheus.yaml"] == str(DEPLOY / "monitoring" / "prometheus.gpu.yaml")


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_our_services_and_images_is_a_setting(name: str) -> None:
    assert set(BUILT[name].environment) - known_variables() == set()


def test_every_variable_of_the_gpu_file_and_of_systemd_is_a_setting() -> None:
    told = set(read(DEPLOY / "compose.gpu.yaml")["services"]["worker"]["environment"])
    for file in UNITS:
        told |= set(unit_variables(file))
    told |= set(re.findall(r"^(\w+)=", (DEPLOY / "systemd" / "farm.env").read_text(), re.MULTILINE))
    assert told
    assert told - known_variables() == set()


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_a_service_are_ones_that_a_farm_starts_with(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in BUILT[name].environment.items():
        monkeypatch.setenv(variable, value)
    settings = Settings.load().require()
    assert (settings.bucket, settings.model, settings.model_source) == ("latentfarm", "mini", "")
    # the volume is mounted as a folder of what the store serves, which makes it the bucket
    assert BUILT["s3"].told["volumes"] == [f"pictures:/data/{settings.bucket}"]


def test_both_images_run_without_any_right_and_are_asked_for_their_health() -> None:
    for file in DOCKERFILES:
        image = Image.built_by(file)
        assert image.user == "10001:10001"
        assert image.entrypoint == ["latentfarm"]
        assert image.health == ["python3", "/opt/latentfarm/healthcheck.py"]
    assert len(DOCKERFILES) == 2


@pytest.mark.parametrize("name", BUILT)
def test_every_container_is_locked_down_and_none_listens_beyond_this_machine(name: str) -> None:
    told = BUILT[name].told
    assert told["read_only"] is True
    assert told["cap_drop"] == ["ALL"]
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert not [port for port in told.get("ports", []) if not port.startswith("127.0.0.1:")]
    assert not {"privileged", "network_mode", "pid", "ipc", "cap_add", "devices"} & set(told)


@pytest.mark.parametrize("name", BUILT)
def test_an_image_that_others_make_has_a_version_and_one_of_ours_is_built(name: str) -> None:
    told = BUILT[name].told
    if name in OURS:
        assert told["image"] == f"latentfarm/{'worker' if name == 'worker' else 'producer'}"
    else:
        assert re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", told["image"])


def test_every_file_that_is_mounted_is_there() -> None:
    mounted = [
        volume.split(":")[0]
        for file in (COMPOSE, DEPLOY / "compose.gpu.yaml")
        for service in read(file)["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert mounted
    assert [path for path in mounted if not (DEPLOY / path).is_file()] == []


def test_the_password_file_that_make_writes_has_the_passwords_that_compose_asks_for() -> None:
    asked = set(re.findall(r"\$\{(\w*(?:PASSWORD|SECRET)\w*)", COMPOSE.read_text()))
    assert asked == set(PASSWORDS)
    makefile = (REPOSITORY / "Makefile").read_text()
    assert [name for name in asked if name not in makefile] == []


def test_no_deadline_ends_a_worker_before_it_has_given_its_jobs_back() -> None:
    drain_s = Settings.model_fields["shutdown_timeout_s"].default
    from latentfarm.local.farm import worker_exit_s

    needed_s = worker_exit_s(Settings())
    assert needed_s > drain_s
    assert seconds(BUILT["worker"].told["stop_grace_period"]) > needed_s
    unit = (DEPLOY / "systemd" / "latentfarm-worker.service").read_text()
    [found] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert float(found) > needed_s


def test_prometheus_asks_where_the_services_serve() -> None:
    served = {name: BUILT[name].environment.get("LATENTFARM_METRICS_ADDRESS", "") for name in OURS}
    ports = {name: address.rpartition(":")[2] for name, address in served.items()}
    plain, gpu = (scrapes(DEPLOY / "monitoring" / name) for name in ("prometheus.yaml", "prometheus.gpu.yaml"))
    assert plain["latentfarm-exporter"]["static_configs"] == [{"targets": [f"exporter:{ports['exporter']}"]}]
    [asked] = plain["latentfarm-worker"]["dns_sd_configs"]
    assert (asked["names"], str(asked["port"])) == (["worker"], ports["worker"])
    # the same but for the further workers of a host with several GPUs
    first = int(ports["worker"])
    assert gpu.pop("latentfarm-worker")["dns_sd_configs"] == [{**asked, "port": first + n} for n in range(8)]
    del plain["latentfarm-worker"]
    assert gpu == plain


@pytest.mark.parametrize("name", ["prometheus.yaml", "prometheus.gpu.yaml"])
def test_prometheus_understands_its_configuration(name: str) -> None:
    # the rules lie where the container has them
    checked = run(tools.find("promtool"), "check", "config", "--syntax-only", f"deploy/monitoring/{name}")
    assert checked.returncode == 0, checked.stderr


def scrapes(file: Path) -> dict[str, dict[str, Any]]:
    return {each["job_name"]: each for each in yaml.safe_load(file.read_text())["scrape_configs"]}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_systemd_understands_a_unit_and_finds_it_well_shut_off(file: Path, tmp_path: Path) -> None:
    # it wants the program to be there
    here = tmp_path / file.name
    here.write_text(file.read_text().replace("/opt/latentfarm/bin/latentfarm", tool("latentfarm")))
    checked = run("systemd-analyze", "verify", str(here))
    assert (checked.returncode, checked.stderr) == (0, "")
    judged = run("systemd-analyze", "security", "--offline=true", "--threshold=40", str(here))
    assert judged.returncode == 0, judged.stdout


def test_the_health_check_passes_where_nothing_is_served_and_fails_where_nobody_answers() -> None:
    check = str(DEPLOY / "healthcheck.py")
    assert run(sys.executable, check, LATENTFARM_METRICS_ADDRESS="").returncode == 0
    # port 1 is nobody's
    assert run(sys.executable, check, LATENTFARM_METRICS_ADDRESS="0.0.0.0:1").returncode == 1


def test_every_command_that_starts_something_is_one_of_ours() -> None:
    from typer.main import get_command

    from latentfarm.cli import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    started = {BUILT[name].command[1] for name in ("worker", "exporter")}
    started |= {
        found for file in UNITS for found in re.findall(r"^ExecStart=\S+ (\w+)", file.read_text(), re.MULTILINE)
    }
    assert started == {"worker", "exporter"}
    assert started <= commands
