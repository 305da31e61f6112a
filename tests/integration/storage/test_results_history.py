"""Random histories of flushes, retries and recoveries: results, jobs, fetch and the ledger agree at every point."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from tests.support.tiny_images import store

from latentfarm import Batch, Farm
from latentfarm.job_state import TERMINAL_STATES, JobState
from latentfarm.ledger import Lease
from latentfarm.recovery.recover import recover_batch
from latentfarm.storage.keys import batch_prefix, parse_results_key, results_prefix
from latentfarm.storage.orphans import collect_orphans
from latentfarm.storage.results import PartFlush, flush_batch, flush_due, list_generations, read_part

pytestmark = pytest.mark.integration

TOTAL = 3
#: state, image and error code of a job
Outcome = tuple[JobState, str | None, str | None]
PENDING: Outcome = (JobState.PENDING, None, None)


class SlowFlush:
    """A flush that stops after each of its steps until the next one is due."""

    def __init__(self, farm: Farm, flush: PartFlush) -> None:
        self.flush = flush
        self._steps = self._run(farm)

    def _run(self, farm: Farm) -> Iterator[None]:
        self.flush.put(farm.bucket)
        yield
        self.flush.drop(farm.ledger)
        yield
        self.flush.remove_outdated(farm.ledger, farm.bucket)

    def step(self) -> bool:
        """Do one more step; return whether another one follows."""
        return next(self._steps, self) is not self


class ResultsHistory(RuleBasedStateMachine):
    farm: Farm
    folder: Path
    flushes = Bundle("flushes")

    @initialize()
    def submit(self) -> None:
        self.farm.ledger.redis.flushall()
        list(self.farm.bucket.delete_all(batch_prefix("b")))
        self.batch: Batch = self.farm.submit([{"prompt": "p", "seed": 1}] * TOTAL, batch="b")
        self.jobs: list[Outcome] = [PENDING] * TOTAL
        self.cancelled = False
        #: what was stored for each key
        self.bodies: dict[str, bytes] = {}

    # -- jobs ------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, TOTAL), failing=st.sets(st.integers(0, TOTAL - 1)))
    def run(self, count: int, failing: set[int]) -> None:
        for lease in self.farm.ledger.lease("mini", "w", count, lease_s=1000):
            self.jobs[lease.index] = self.end(lease, fail=lease.index in failing)

    def end(self, lease: Lease, *, fail: bool) -> Outcome:
        if fail:
            code = f"code{lease.epoch % 1000}"
            assert self.farm.ledger.fail(lease, {"code": code, "message": "m"}) in {"failed", "full"}
            return JobState.FAILED, None, code
        receipt = store(self.farm, lease)
        assert self.farm.ledger.commit([(lease, receipt)])[0] in {"done", "full"}
        return JobState.DONE, receipt["key"], None

    @precondition(lambda self: not self.cancelled)
    @rule()
    def retry(self) -> None:
        failed = [index for index, (state, _, _) in enumerate(self.jobs) if state is JobState.FAILED]
        assert self.batch.retry() == len(failed)
        for index in failed:
            self.jobs[index] = PENDING

    @rule(dice=st.integers(0, 9))
    def cancel(self, dice: int) -> None:
        if dice:
            return  # no job changes after it, so it comes rarely
        ended = {state for state, _, _ in self.jobs} <= TERMINAL_STATES
        self.batch.cancel()
        if not ended:
            self.cancelled = True
            self.jobs = [(JobState.CANCELLED, None, None) if job is PENDING else job for job in self.jobs]

    # -- flushes ---------------------------------------------------------------------------------------------

    @rule(target=flushes)
    def begin_flush(self) -> Any:
        flush = PartFlush.read(self.farm.ledger, self.farm.bucket, "b", 0)
        if flush is None:
            assert not {state for state, _, _ in self.jobs} <= TERMINAL_STATES
            return multiple()
        assert self.bodies.setdefault(flush.key, flush.body) == flush.body
        return SlowFlush(self.farm, flush)

    @rule(target=flushes, flush=consumes(flushes))
    def continue_flush(self, flush: SlowFlush) -> Any:
        return flush if flush.step() else multiple()

    @rule()
    def flush_as_a_worker(self) -> None:
        queue = self.queue()
        if queue:
            # a minute later, if it was claimed
            self.farm.ledger.redis.zadd("{lf}:flush_queue", dict.fromkeys(queue, 1), xx=True)
        assert flush_due(self.farm.ledger, self.farm.bucket) == len(queue)

    @rule()
    def flush_as_a_client(self) -> None:
        queue = self.queue()
        assert flush_batch(self.farm.ledger, self.farm.bucket, "b") == len(queue)
        assert self.queue() == []

    def queue(self) -> list[str]:
        return [f"{batch}/{part}" for batch, part in self.farm.ledger.full_parts()]

    @rule()
    def collect(self) -> None:
        collect_orphans(self.farm.ledger, self.farm.bucket, "b")

    # -- recoveries ------------------------------------------------------------------------------------------

    @rule(ledger_is_lost=st.booleans())
    def recover(self, *, ledger_is_lost: bool) -> None:
        stored = {line["index"]: line for line in self.newest_lines()}
        if ledger_is_lost:
            self.farm.ledger.redis.flushall()
        recover_batch(self.farm.ledger, self.farm.bucket, "b")
        self.jobs = [
            self.recovered(job, stored.get(index, {}), ledger_is_lost=ledger_is_lost)
            for index, job in enumerate(self.jobs)
        ]

    def recovered(self, job: Outcome, line: dict[str, Any], *, ledger_is_lost: bool) -> Outcome:
        if job[0] is JobState.DONE:
            return job
        if line.get("state") == "failed":
            # also a job whose retry has not ended
            return JobState.FAILED, None, line["error"]["code"]
        if job[0] is JobState.FAILED and not ledger_is_lost:
            return job
        return (JobState.CANCELLED, None, None) if self.cancelled else PENDING

    def newest_lines(self) -> list[dict[str, Any]]:
        return [
            line
            for part, generation in list_generations(self.farm.bucket, "b").items()
            for line in read_part(self.farm.bucket, "b", part, generation)
        ]

    # -- what holds ------------------------------------------------------------------------------------------

    @invariant()
    def results_jobs_and_ledger_agree(self) -> None:
        if not hasattr(self, "jobs"):
            return
        assert self.farm.ledger.states("b", 0, TOTAL) == [state for state, _, _ in self.jobs]
        assert [outcome(line) for line in self.batch.results()] == self.jobs
        assert [outcome(job.model_dump()) for job in self.batch.jobs()] == self.jobs

    @rule()
    def fetch(self) -> None:
        report = self.batch.fetch(self.folder)
        lines = report.results.read_text().splitlines()
        assert [outcome(json.loads(line)) for line in lines] == self.jobs

    def teardown(self) -> None:
        """Let the rest of the jobs and flushes end: the bucket agrees with the ledger."""
        if not hasattr(self, "jobs"):
            return
        self.run(TOTAL, set())
        for flush in self.names_values():
            while flush.step():
                pass
        self.flush_as_a_client()
        self.results_jobs_and_ledger_agree()
        self.fetch()
        collect_orphans(self.farm.ledger, self.farm.bucket, "b")
        newest = [outcome(line) for line in self.newest_lines()]
        # a batch that was cancelled before any job ended has no results
        assert newest == self.jobs or (newest == [] and {state for state, _, _ in self.jobs} == {JobState.CANCELLED})
        # one above it is of a flush that was slower than a recovery; a later recovery may take it
        _, current = self.farm.ledger.flushed("b", 0)
        generations = [(parse_results_key(key) or (0, -1))[1] for key in self.farm.bucket.keys(results_prefix("b"))]
        assert all(generation >= current for generation in generations)
        assert recover_batch(self.farm.ledger, self.farm.bucket, "b", dry_run=True).changed is False

    def names_values(self) -> list[SlowFlush]:
        return [self.names_to_values[name.name] for name in self.bundles.get("flushes", [])]


def outcome(line: dict[str, Any]) -> Outcome:
    state = next(state for state in JobState if state.word == line["state"])
    return state, line.get("key"), (line.get("error") or {}).get("code")


def test_results_jobs_fetch_and_ledger_agree_in_every_history(farm: Farm, tmp_path: Path) -> None:
    ResultsHistory.farm, ResultsHistory.folder = farm, tmp_path / "out"
    # a history takes a second: hours would pass until a failure was shrunk
    ResultsHistory.TestCase.settings = settings(
        max_examples=30,
        stateful_step_count=25,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    ResultsHistory.TestCase("runTest").runTest()
