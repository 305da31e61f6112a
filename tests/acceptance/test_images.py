"""Build and run the container images: `make test-images`, as root on a Debian with buildah and debootstrap."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import until
from tests.support.deploy.build_images import Builder, Built
from tests.support.deploy.compose_runner import ComposeRunner, Running
from tests.support.deploy.containers import Container
from tests.support.deploy.dockerfiles import DOCKERFILES, Image
from tests.support.processes import children_of
from tests.support.scraping import scraped

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        os.geteuid() != 0 or not (shutil.which("buildah") and shutil.which("debootstrap")),
        reason="needs root, buildah and debootstrap: make test-images",
    ),
]

JOBS = 20
PROMPTS = "".join(f"prompt {n}\n" for n in range(JOBS))
SMALL = ["--num-inference-steps", "4", "--width", "64", "--height", "64"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Built]]:
    folder = tmp_path_factory.mktemp("images")
    builder = Builder(folder)
    builder.make_base()
    yield {file.name.removesuffix(".Dockerfile"): builder.build(file) for file in DOCKERFILES}
    shutil.rmtree(folder)


def container(image: Built, volumes: dict[str, Path]) -> Container:
    for folder in volumes.values():
        folder.mkdir(exist_ok=True)
        os.chown(folder, 10001, 10001)
    path = dict(pair.split("=", 1) for pair in image.config["Env"])["PATH"]
    return Container(image.root, image.config["User"], image.config["WorkingDir"], path, volumes)


@pytest.fixture
def compose(built: dict[str, Built], tmp_path: Path) -> Iterator[ComposeRunner]:
    hosts = {
        "latentfarm/worker": container(built["worker"], {"/var/cache/latentfarm": tmp_path / "cache"}),
        "latentfarm/producer": container(built["producer"], {"/work": tmp_path / "work"}),
    }
    with ComposeRunner(tmp_path, hosts) as each:
        yield each


def test_a_built_image_has_the_configuration_that_our_parser_reads_from_its_dockerfile(built: dict[str, Built]) -> None:
    for file in DOCKERFILES:
        config, read = built[file.name.removesuffix(".Dockerfile")].config, Image.built_by(file)
        assert (config["Entrypoint"], config["Cmd"]) == (read.entrypoint, read.command)
        assert config["Healthcheck"]["Test"] == ["CMD", *read.health]
        assert (config["User"], config["WorkingDir"]) == (read.user, read.folder)
        environment = dict(pair.split("=", 1) for pair in config["Env"])
        assert {name: environment[name] for name in read.environment if name != "PATH"} == {
            name: value for name, value in read.environment.items() if name != "PATH"
        }
        assert environment["PATH"].startswith("/opt/latentfarm/bin:")


def test_the_images_contain_our_code_and_mini_but_no_other_model_and_no_pip(built: dict[str, Built]) -> None:
    weights = {".ckpt", ".gguf", ".onnx", ".safetensors"}
    for name, image in built.items():
        found = [file for file in image.files if file.suffix in weights or file.name.startswith("pytorch_model")]
        models = {str(file).partition("/site-packages/")[2].rpartition("/model/")[0] for file in found}
        # producer and worker install the same wheel
        assert models == {"latentfarm_worker/mini"}, found
        assert not [file for file in image.files if "/opt/latentfarm/bin/pip" in str(file)]
        print(f"{name}: {image.bytes / 1e6:.0f} MB")
    packages = "opt/latentfarm/lib/python3*/site-packages"
    assert list(built["producer"].root.glob(f"{packages}/latentfarm/settings.py"))
    assert not list(built["producer"].root.glob(f"{packages}/torch"))
    assert built["producer"].bytes < built["worker"].bytes / 2


def test_the_built_images_render_twenty_jobs_without_capabilities_on_a_read_only_root(compose: ComposeRunner) -> None:
    compose.start("redis")
    compose.start("s3")
    worker, exporter = compose.start("worker"), compose.start("exporter")
    submitted = compose.run("producer", "submit", "-", "--format", "txt", "--batch", "b", *SMALL, stdin=PROMPTS)
    assert (submitted.returncode, submitted.stdout) == (0, "b\n"), submitted.stderr
    waited = compose.run("producer", "wait", "b", "--timeout", "180")
    assert waited.returncode == 0, waited.stderr + worker.log.read_text()
    status = json.loads(compose.run("producer", "status", "b", "--json").stdout)
    assert (status["done"], status["failed"]) == (JOBS, 0)

    for each in (worker, exporter):
        assert privileges_of(each) == {"Uid": "10001", "CapEff": 0, "CapBnd": 0, "CapPrm": 0, "NoNewPrivs": "1"}
        until(each.healthy, timeout_s=30)
        refused = each.host.run(["sh", "-c", "touch /opt/latentfarm/x /etc/x /x"], each.environment, "")
        assert refused.stderr.count("Read-only file system") == 3
    assert worker.ready()
    # torch.compile needs a compiler and Python's headers
    headers = "$(python3 -c 'import sysconfig; print(sysconfig.get_path(\"include\"))')"
    compiling = f"echo '#include <Python.h>' | g++ -x c++ -I {headers} -shared -fPIC -o compiled.so - && rm compiled.so"
    compiled = worker.host.run(["sh", "-c", compiling], worker.environment, "")
    assert compiled.returncode == 0, compiled.stderr
    assert scraped(exporter.metrics_address)["latentfarm_batch_jobs", "b", "mini", "done"] == JOBS
    assert scraped(worker.metrics_address)["latentfarm_images_total", "mini", "done"] == JOBS

    fetched = compose.run("producer", "fetch", "b", "-o", "b")
    assert fetched.returncode == 0, fetched.stderr
    images = list((compose.folder / "work" / "b").glob("*.png"))
    assert len(images) == JOBS
    assert {file.stat().st_uid for file in images} == {10001}

    # process 1 of a container receives only signals that it handles
    assert (compose.stop(worker), compose.stop(exporter)) == (0, 0)


def privileges_of(running: Running) -> dict[str, str | int]:
    """Return the user, the capabilities and no_new_privs of a container's first process, from /proc."""
    [first] = children_of(running.process.pid)
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{first}/status").read_text().splitlines())
    masks = {name: int(lines[name], 16) for name in ("CapEff", "CapBnd", "CapPrm")}
    return {"Uid": lines["Uid"].split("\t")[0], "NoNewPrivs": lines["NoNewPrivs"], **masks}
