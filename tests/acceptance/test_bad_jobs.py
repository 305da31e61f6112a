"""A job that breaks steps, or ends its worker's process, on one real supervised worker: it harms no other job."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
from tests.conftest import until
from tests.support.faulty_workers import SMALL, Worker, faulty
from tests.support.memory_limit import limited_memory
from tests.support.slow_cases import quick

from latentfarm import Batch, Farm
from latentfarm.settings import Settings

pytestmark = pytest.mark.acceptance

SLOTS = 8
LIMITS = {"LATENTFARM_SLOTS": str(SLOTS), "LATENTFARM_LEASE_TTL_S": "10"}
OPTIONS = ("--stall-timeout-s", "3", "--shutdown-timeout-s", "5")

#: by fault, the code with which its job fails
CODES = {"err": "engine_error", "stick": "poison", "die": "poison", "block": "poison", "hold_the_lock": "poison"}


def submit(farm: Farm, name: str, count: int, fault: str = "", bad: Collection[int] = ()) -> Batch:
    """Submit jobs of which those at ``bad`` have a fault's name as their prompt."""
    rows = [{**SMALL, "prompt": fault if index in bad else f"p{index}"} for index in range(count)]
    return farm.submit(rows, batch=name)


def check(batch: Batch, fault: str, bad: Collection[int], worker: Worker) -> None:
    """Wait for a batch. Its bad jobs fail, each for its own fault; the others are done at their first attempt."""
    batch.wait(timeout_s=150)
    jobs = list(batch.jobs())
    innocent = [job for index, job in enumerate(jobs) if index not in bad]
    assert {(job.state, job.attempts) for job in innocent} == {("done", 1)}, worker.log
    for index in bad:
        error = jobs[index].error or {}
        assert (jobs[index].state, error.get("code")) == ("failed", CODES[fault]), worker.log
        assert fault != "err" or "the prompt 'err' breaks the model" in error["message"]


def check_it_renders_on(farm: Farm, worker: Worker) -> None:
    further = submit(farm, "further", 2 * SLOTS)
    assert further.wait(timeout_s=60).done == 2 * SLOTS, worker.log
    assert worker.process.poll() is None, "it is restarted"
    assert {job.attempts for job in further.jobs()} == {1}


@pytest.mark.parametrize("fault", quick(CODES, but={"hold_the_lock", "block", "stick"}))
def test_one_bad_job_of_eight_harms_no_other(settings: Settings, tmp_path: Path, fault: str) -> None:
    farm, bad = Farm.open(settings), [3]
    with faulty(settings, tmp_path / "w", LIMITS, *OPTIONS) as worker:
        check(submit(farm, "b", 8, fault, bad), fault, bad, worker)
        # twice in a process that it ends alone: the first time it had company
        assert worker.met(fault) == (1 if fault == "err" else 3), worker.log
        until(lambda: worker.log.count("while rendering b/3 alone; restarting") == (0 if fault == "err" else 2))
        check_it_renders_on(farm, worker)


@pytest.mark.parametrize("fault", quick(CODES, but={*CODES}))
def test_two_bad_jobs_of_thirty_harm_no_other(settings: Settings, tmp_path: Path, fault: str) -> None:
    farm, bad = Farm.open(settings), [7, 20]
    with faulty(settings, tmp_path / "w", LIMITS, *OPTIONS) as worker:
        check(submit(farm, "b", 30, fault, bad), fault, bad, worker)
        check_it_renders_on(farm, worker)


@pytest.mark.slow
def test_a_job_that_the_out_of_memory_killer_ends_harms_no_other(settings: Settings, tmp_path: Path) -> None:
    farm = Farm.open(settings)
    with (
        limited_memory(1 << 30) as within,
        faulty(settings, tmp_path / "w", LIMITS, *OPTIONS, within=within) as worker,
    ):
        batch = submit(farm, "b", 8, "exhaust", [3])
        batch.wait(timeout_s=150)
        assert [job.state for job in batch.jobs()] == ["done"] * 3 + ["failed"] + ["done"] * 4, worker.log
        assert (batch.job(3).error or {})["code"] == "poison"
        until(lambda: worker.log.count("ended with signal SIGKILL while rendering b/3 alone") == 2)
        check_it_renders_on(farm, worker)


@pytest.mark.parametrize("fault", quick(["stick", "die"], but={"die"}))
def test_a_device_that_breaks_with_every_job_ends_its_worker_and_fails_none(
    settings: Settings, tmp_path: Path, fault: str
) -> None:
    farm, jobs = Farm.open(settings), 3 * SLOTS
    with faulty(settings, tmp_path / "w", LIMITS, *OPTIONS) as worker:
        batch = submit(farm, "b", jobs, fault, range(jobs))
        assert worker.process.wait(120) == 76, worker.log
    status = batch.status()
    assert (status.failed, status.done) == (0, 0), worker.log
    assert farm.ledger.redis.hgetall("{lf}:attempts:b") == {}
