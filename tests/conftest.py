"""Fixtures of every tier: a real Redis and a real S3 server, started once, emptied for each test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from tests.support.fork_server import ForkServer, install, uninstall

from latentfarm.farm import Farm
from latentfarm.ledger import Ledger
from latentfarm.local.redis_server import start_redis
from latentfarm.local.s3_server import start_s3
from latentfarm.settings import Settings

# at a desk every run tries new examples; in CI a change is judged by the same ones as the change before it
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")

REPOSITORY = Path(__file__).parents[1]
CHAOS = REPOSITORY / "tests" / "chaos"

# `nohup make test &` in a script begins with SIGINT ignored, and commands that tests start would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# processes of pytest-xdist share the cores; this comes before torch does
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the minutes of chaos, in which processes mostly wait: other tests run beside them."""
    items.sort(key=lambda item: CHAOS not in item.path.parents)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Replace lone surrogates in captured output: a process of pytest-xdist cannot send them."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def calibration_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache that all processes of this run share, so that each device is measured once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in os.environ:
        if name.startswith(("LATENTFARM_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LATENTFARM_CACHE_DIR", str(calibration_cache(tmp_path_factory)))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("servers")
    redis, url = start_redis(folder / "redis", log=folder / "redis.log")
    s3, settings = start_s3(folder / "s3", log=folder / "s3.log")
    yield settings.model_copy(update={"redis_url": url})
    s3.terminate()
    s3.wait_or_kill(5)
    redis.terminate()
    redis.wait_or_kill(5)


@pytest.fixture(scope="session")
def connected(servers: Settings) -> Farm:
    """The farm of every test: a client of S3 takes a tenth of a second to make."""
    return Farm.open(servers)


def empty(farm: Farm) -> None:
    """Remove everything from the ledger and the bucket, whichever test left it."""
    farm.ledger.redis.flushall()
    list(farm.bucket.delete_all(""))


@pytest.fixture
def settings(servers: Settings, connected: Farm) -> Settings:
    empty(connected)
    return servers


@pytest.fixture
def farm(settings: Settings, connected: Farm) -> Farm:
    assert connected.settings == settings
    return connected


@pytest.fixture
def ledger(farm: Farm) -> Ledger:
    return farm.ledger


@pytest.fixture(scope="session")
def shared_fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], ForkServer]]:
    """Return a function that returns the fork server, which starts when it is first called."""
    started: list[ForkServer] = []

    def get_server() -> ForkServer:
        if not started:
            started.append(ForkServer(log=tmp_path_factory.mktemp("fork-server") / "log"))
        return started[0]

    yield get_server
    for server in started:
        server.close()


@pytest.fixture(autouse=True)
def forked_commands(request: pytest.FixtureRequest, shared_fork_server: Callable[[], ForkServer]) -> Iterator[None]:
    """Fork ``python -m latentfarm ...`` from a process that has imported torch; unit tests start few and light ones."""
    if request.node.get_closest_marker("unit"):
        yield
        return
    install(shared_fork_server)
    yield
    uninstall()


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def latentfarm(tmp_path: Path) -> Command:
    """Run the real command in an empty folder."""

    def run(
        *arguments: str, settings: Settings | None = None, folder: Path = tmp_path, **more: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **(settings.environment() if settings else {}), **more}
        return subprocess.run(
            [sys.executable, "-m", "latentfarm", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().split("\n") if line]


def until(condition: Callable[[], bool], *, timeout_s: float = 150) -> None:
    """Return as soon as the condition holds; other processes give us no event to wait for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
