"""`up` and `worker` with real processes; some are killed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import REPOSITORY, Command, until
from tests.support.leasing import holders
from tests.support.processes import alive, children_of, process_of
from tests.support.scraping import http_get

from latentfarm import Farm
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings
from latentfarm.storage.orphans import collect_orphans
from latentfarm_worker.tools.bfloat16 import bfloat16_instructions

pytestmark = pytest.mark.acceptance


@contextmanager
def running_up(
    folder: Path, *arguments: str, printed: list[str] | None = None, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Run ``up``, without the HTTP server unless an argument names it; ``printed`` collects the lines of its start."""
    if not {"--server", "--address"} & set(arguments):
        arguments = (*arguments, "--no-server")
    process = subprocess.Popen(
        [sys.executable, "-m", "latentfarm", "up", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if printed is not None:
            printed.append(line.rstrip())
        if line.startswith("up;"):
            break
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.slow
def test_two_hundred_jobs_survive_a_killed_worker(tmp_path: Path) -> None:
    with running_up(tmp_path, "--workers", "2", LATENTFARM_LEASE_TTL_S="5", LATENTFARM_HOUSEKEEPING_INTERVAL_S="1"):
        farm = Farm.open(Settings.load(tmp_path / ".latentfarm"))
        rows = [{"prompt": f"prompt {n}", "num_inference_steps": 6, "width": 64, "height": 64} for n in range(200)]
        batch = farm.submit(rows, batch="b")
        until(lambda: len(farm.ledger.workers("mini")) == 2 and batch.status().done >= 40)

        until(lambda: len(holders(farm.ledger)) == 2)
        os.kill(process_of(min(holders(farm.ledger))), signal.SIGKILL)
        status = batch.wait(timeout_s=150)

        assert (status.done, status.failed, status.leased) == (200, 0, 0)
        lines = list(batch.results())
        assert len({line["index"] for line in lines}) == 200
        # its jobs ran again, and none is charged
        assert {line["attempts"] for line in lines} == {1}
        # the killed worker may have stored images that it had not committed
        collect_orphans(farm.ledger, farm.bucket, "b")
        keys = set(farm.bucket.keys("batches/b/images/"))
        assert keys == {line["key"] for line in lines}
        for line in lines:
            body = farm.bucket.get(line["key"])
            assert hashlib.sha256(body).hexdigest() == line["sha256"]
            with Image.open(io.BytesIO(body)) as image:
                image.load()
        assert farm.ledger.redis.zcard("{lf}:leases") == 0


def test_up_runs_once_in_a_folder_listens_on_loopback_only_and_leaves_no_process(
    latentfarm: Command, tmp_path: Path
) -> None:
    with running_up(tmp_path, "--workers", "0") as process:
        second = latentfarm("up")
        assert second.returncode == 2
        assert f"already runs in .latentfarm (process {process.pid})" in second.stderr

        settings = Settings.load(tmp_path / ".latentfarm")
        assert settings.redis_url.startswith("unix://")
        assert settings.s3_endpoint_url.startswith("http://127.0.0.1:")
        redis = Farm.open(settings).ledger.redis
        assert redis.config_get("port")["port"] == "0"
        assert redis.config_get("appendonly")["appendonly"] == "yes"
        assert redis.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"

        (tmp_path / "p.txt").write_text("a cat\na dog\n")
        name = latentfarm("submit", "p.txt").stdout.strip()
        status = json.loads(latentfarm("status", name, "--json").stdout)
        assert list(status)[:3] == ["batch", "model", "state"]
        assert (status["state"], status["pending"]) == ("open", 2)
        assert latentfarm("jobs", name, "--state", "pending").stdout.split("\n")[0] == f"{name}/0  pending"
        assert json.loads(latentfarm("job", f"{name}/1", "--json").stdout)["state"] == "pending"
        assert latentfarm("wait", name, "--timeout", "0").returncode == 1
        servers = children_of(process.pid)
        assert len(servers) == 2
    assert process.returncode == 0
    assert not [pid for pid in servers if alive(pid)]
    assert not (tmp_path / ".latentfarm" / "farm.json").exists()


def test_up_runs_the_http_server_and_works_without_it(latentfarm: Command, tmp_path: Path) -> None:
    printed: list[str] = []
    with running_up(tmp_path, "--workers", "0", "--address", "127.0.0.1:0", printed=printed) as process:
        [url] = [line.split()[1] for line in printed if line.startswith("server ")]
        address = url.removeprefix("http://")
        assert http_get(address, "/readyz") == (200, "ok\n")
        assert http_get(address, "/api/batches")[0] == 200
        servers = children_of(process.pid)
        assert len(servers) == 3

        # another farm, on an address that is in use: chosen, it is an error; by default the farm works without it
        (tmp_path / "other").mkdir()
        refused = latentfarm("up", "--workers", "0", "--address", address, folder=tmp_path / "other")
        assert refused.returncode == 3
        assert f"latentfarm: cannot serve {address}: Address already in use" in refused.stderr
    assert not [pid for pid in servers if alive(pid)]
    wrong = latentfarm("up", "--workers", "0", "--address", "7860")
    assert (wrong.returncode, wrong.stderr.startswith("latentfarm: --address is '7860'; write HOST:PORT")) == (2, True)


def test_a_second_ctrl_c_waits_for_no_image(tmp_path: Path) -> None:
    with running_up(tmp_path, "--workers", "1", LATENTFARM_SHUTDOWN_TIMEOUT_S="60") as process:
        farm = Farm.open(Settings.load(tmp_path / ".latentfarm"))
        long = {"prompt": "a cat", "num_inference_steps": 500, "width": 512, "height": 512}
        batch = farm.submit([long], batch="b")
        [log] = (tmp_path / ".latentfarm" / "logs").glob("worker-*.log")
        until(lambda: batch.status().leased == 1)
        process.send_signal(signal.SIGINT)
        until(lambda: "leasing nothing more" in log.read_text())
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert time.monotonic() - began < 10


def test_celery_itself_starts_a_worker(settings: Settings, tmp_path: Path) -> None:
    farm = Farm.open(settings)
    batch = farm.submit([{"prompt": "a cat", "num_inference_steps": 2, "width": 64, "height": 64}], batch="b")
    worker = ManagedProcess(
        "worker",
        [sys.executable, "-m", "celery", "-A", "latentfarm_worker", "worker"],
        log=tmp_path / "log",
        env=settings.environment(),
    )
    try:
        assert batch.wait(timeout_s=90).done == 1
    finally:
        worker.terminate()
        assert worker.wait_or_kill(30) == 0, worker.log_tail()
    assert farm.ledger.workers("mini") == []


def test_a_worker_is_listed_with_its_rate_and_its_busy_share_as_long_as_it_runs(
    settings: Settings, latentfarm: Command, tmp_path: Path
) -> None:
    farm = Farm.open(settings)
    job = {"num_inference_steps": 8, "width": 64, "height": 64}
    batch = farm.submit([{"prompt": f"p{n}", **job} for n in range(12)], batch="b")
    command = [sys.executable, "-m", "latentfarm", "worker", "--slots", "3"]
    environment = {**settings.environment(), "LATENTFARM_HOUSEKEEPING_INTERVAL_S": "0.5"}
    worker = ManagedProcess("worker", command, log=tmp_path / "log", env=environment)
    try:
        assert batch.wait(timeout_s=120).done == 12
        until(lambda: farm.workers()[0].images == 12)
        [found] = json.loads(latentfarm("workers", "--json", settings=settings).stdout)
        assert (found["model"], found["device"], found["dtype"], found["slots"]) == ("mini", "cpu", "float32", 3)
        assert found["images"] == 12
        assert found["images_per_s"] > 0
        assert 0 < found["busy_share"] <= 1
        [line] = json.loads(latentfarm("status", "b", "--json", settings=settings).stdout)["workers"]
        assert line["worker"] == found["worker"]
        shown = latentfarm("workers", "--model", "mini", settings=settings).stdout
        workers, models = shown.split("\n\n")
        names, row = workers.splitlines()
        assert names.split() == ["worker", "model", "device", "dtype", "slots", "up", "images", "images/s", "busy"]
        assert row.startswith(f"{found['worker']}  mini   cpu (")
        assert models.splitlines()[1].split()[:2] == ["mini", "StableDiffusionPipeline"]
        # it is the model's only worker
        speed = farm.ledger.throughput("mini")
        assert speed is not None
        assert speed.images == 12
    finally:
        worker.terminate()
        assert worker.wait_or_kill(30) == 0, worker.log_tail()
    none = latentfarm("workers", settings=settings)
    assert (none.returncode, none.stdout) == (0, "")
    assert "no worker is running now" in none.stderr


def test_a_worker_without_its_model_exits_with_an_error(
    settings: Settings, latentfarm: Command, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    result = latentfarm("worker", "--model", "sd=empty", settings=settings)
    assert result.returncode == 2
    assert "model_index.json" in result.stderr


def test_doctor_reports_each_check(settings: Settings, latentfarm: Command) -> None:
    well = latentfarm("doctor", "--json", settings=settings)
    assert well.returncode == 0, well.stdout + well.stderr
    lines = json.loads(well.stdout)
    assert [line["check"] for line in lines] == ["redis", "bucket", "model", "device"]
    expected = (
        f"bfloat16 ({bfloat16_instructions()}) takes " if bfloat16_instructions() else "no instructions for bfloat16"
    )
    assert expected in lines[-1]["text"]
    ill = latentfarm("doctor", settings=settings.model_copy(update={"bucket": "nowhere", "dtype": "float32"}))
    assert ill.returncode == 1
    assert [line.split()[0] for line in ill.stdout.splitlines()] == ["ok", "BAD", "ok", "ok"]


@pytest.mark.slow
def test_the_light_install_submits_without_torch(settings: Settings, tmp_path: Path) -> None:
    environment = {**os.environ, **settings.environment()}
    environment.pop("PYTHONPATH", None)
    python = tmp_path / "light" / "bin" / "python"

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    run(sys.executable, "-m", "venv", str(python.parents[1]))
    constraints = str(REPOSITORY / "constraints.txt")
    install = run(str(python), "-m", "pip", "install", "--quiet", "--constraint", constraints, str(REPOSITORY))
    assert install.returncode == 0, install.stderr
    assert run(str(python), "-c", "import torch").returncode != 0
    (tmp_path / "p.txt").write_text("a cat\n")
    submitted = run(str(python), "-m", "latentfarm", "submit", "p.txt", "--batch", "light")
    assert (submitted.returncode, submitted.stdout) == (0, "light\n"), submitted.stderr
    serve = run(str(python), "-m", "latentfarm", "serve")
    assert serve.returncode == 2
    assert "pip install 'latentfarm[server]'" in serve.stderr
    for command in (("worker",), ("up",), ("bench",), ("verify", "light"), ("render", "p.txt", "-o", "out")):
        refused = run(str(python), "-m", "latentfarm", *command)
        assert refused.returncode == 2, command
        assert "pip install 'latentfarm[worker]'" in refused.stderr, command
    doctor = run(str(python), "-m", "latentfarm", "doctor")
    assert doctor.returncode == 1
    assert "torch is not installed" in doctor.stdout
