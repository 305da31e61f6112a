"""Real workers whose Redis refuses writes for some seconds: they end for no such answer, and render once it is over."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.chaos.network import Network
from tests.conftest import Command, until
from tests.support.processes import alive, process_of
from tests.support.refusing_redis import CAUSES, MovingAddress, RefusingRedis, refusing_redis
from tests.support.slow_cases import quick

from latentfarm import Farm
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

SMALL = {"prompt": "p", "width": 64, "height": 64, "scheduler": "euler", "num_inference_steps": 2}


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[RefusingRedis]:
    with refusing_redis(tmp_path / "redis") as server:
        yield server


@contextmanager
def worker(settings: Settings, folder: Path, **more: str) -> Iterator[ManagedProcess]:
    """Run a supervised worker in a process of its own."""
    environment = {
        **settings.environment(),
        **more,
        "LATENTFARM_LOG_FORMAT": "text",
        "LATENTFARM_HOUSEKEEPING_INTERVAL_S": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "latentfarm", "worker"]
    child = ManagedProcess("worker", command, log=folder / "worker.log", env=environment)
    try:
        yield child
    finally:
        child.terminate()
        child.wait_or_kill(20)


def log_of(child: ManagedProcess) -> str:
    return child.log.read_text()


def serves(child: ManagedProcess) -> bool:
    child.require_alive()
    return " serves " in log_of(child)


def process(child: ManagedProcess) -> int:
    return process_of(log_of(child).partition(" serves ")[0].rpartition("worker ")[2])


def render_one(farm: Farm, name: str) -> int:
    return farm.submit([SMALL], batch=name).wait(timeout_s=60).done


@pytest.mark.parametrize("cause", quick(CAUSES, but={"OOM", "NOPERM", "MISCONF"}))
def test_an_idle_worker_survives_a_redis_that_refuses_writes(
    cause: str, settings: Settings, refusing: RefusingRedis, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"redis_url": refusing.url})
    farm = Farm.open(settings)
    with worker(settings, tmp_path) as child:
        until(lambda: serves(child))
        assert render_one(farm, "before") == 1
        pid = process(child)
        with refusing.refusing(cause):
            until(lambda: log_of(child).count("cannot be used now: ") >= 4)
        assert render_one(farm, "after") == 1
        assert alive(pid)
        assert process(child) == pid
        assert "Traceback" not in log_of(child)


@pytest.mark.parametrize("cause", quick(CAUSES, but={"OOM", "MISCONF", "NOPERM"}))
def test_a_worker_that_starts_while_redis_refuses_writes_waits_and_then_renders(
    cause: str, settings: Settings, refusing: RefusingRedis, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"redis_url": refusing.url})
    with ExitStack() as stack:
        with refusing.refusing(cause):
            child = stack.enter_context(worker(settings, tmp_path))
            until(lambda: serves(child))
            until(lambda: log_of(child).count("Cannot connect to redis") >= 3)
            pid = process(child)
        assert render_one(Farm.open(settings), "after") == 1
        assert process(child) == pid
    log = log_of(child)
    assert "Traceback" not in log
    # the log names the cure, and no connection is tried more than once a second
    assert "cannot be used now: " in log
    assert "Frequent restarts" not in log


JOBS = 60
LEASE_S = 3


@pytest.mark.parametrize("cause", quick(CAUSES, but=set(CAUSES)))
def test_a_batch_loses_and_charges_nothing_while_redis_refuses_writes(
    cause: str, settings: Settings, refusing: RefusingRedis, tmp_path: Path, latentfarm: Command
) -> None:
    settings = settings.model_copy(update={"redis_url": refusing.url})
    farm = Farm.open(settings)
    limits = {"LATENTFARM_LEASE_TTL_S": str(LEASE_S), "LATENTFARM_SLOTS": "4"}
    with worker(settings, tmp_path, **limits) as child:
        batch = farm.submit([{**SMALL, "num_inference_steps": 10}] * JOBS, batch="b")
        until(lambda: batch.status().done >= 5)
        pid = process(child)
        with refusing.refusing(cause):
            ends = time.monotonic() + 5 * LEASE_S
            while time.monotonic() < ends:
                ran = latentfarm("status", "b", "--json", settings=settings)
                assert (ran.returncode, ran.stderr) == (0, "")
                assert 0 < json.loads(ran.stdout)["done"] < JOBS
        status = batch.wait(timeout_s=120)
        assert process(child) == pid
    assert (status.done, status.failed) == (JOBS, 0)
    # an attempt is charged for an error only, and the one that succeeded counts
    assert {job.attempts for job in batch.jobs()} == {1}
    log = log_of(child)
    assert "Traceback" not in log
    assert "cannot be used now: " in log


def test_a_batch_goes_on_at_the_new_primary_after_a_failover(
    settings: Settings, refusing: RefusingRedis, tmp_path: Path
) -> None:
    refusing.replicate()
    limits = {"LATENTFARM_LEASE_TTL_S": str(LEASE_S), "LATENTFARM_SLOTS": "4"}
    with Network() as network:
        address = MovingAddress(network, refusing.port)
        settings = settings.model_copy(update={"redis_url": address.url})
        farm = Farm.open(settings)
        with worker(settings, tmp_path, **limits) as child:
            batch = farm.submit([{**SMALL, "num_inference_steps": 10}] * JOBS, batch="b")
            until(lambda: batch.status().done >= 5)
            pid = process(child)
            refusing.fail_over()
            # the name is moved later than the roles are, and connections to the old primary stay open
            until(lambda: "it is a read-only replica" in log_of(child))
            address.target = refusing.peer_port
            status = batch.wait(timeout_s=120)
            assert render_one(farm, "after") == 1
            assert process(child) == pid
        assert {job.attempts for job in batch.jobs()} == {1}
    assert (status.done, status.failed) == (JOBS, 0)
    assert "Traceback" not in log_of(child)
