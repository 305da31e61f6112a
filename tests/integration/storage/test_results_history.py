"""Random histories of drafts, flushes, retries and recoveries: results, jobs, fetch and the ledger always agree."""

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
from tests.support.tiny_images import store, store_draft

from latentfarm import Batch, Farm
from latentfarm.job_state import TERMINAL_STATES, JobState
from latentfarm.ledger import Lease
from latentfarm.recovery.recover import recover_batch
from latentfarm.storage.keys import (
    batch_prefix,
    checkpoint_key,
    draft_key,
    drafts_prefix,
    parse_draft_key,
    parse_results_key,
    results_prefix,
)
from latentfarm.storage.orphans import collect_orphans
from latentfarm.storage.results import PartFlush, flush_batch, flush_due, list_generations, read_part

pytestmark = pytest.mark.integration

TOTAL = 3
#: state, image and error code of a job
Outcome = tuple[JobState, str | None, str | None]
PENDING: Outcome = (JobState.PENDING, None, None)
CANCELLED: Outcome = (JobState.CANCELLED, None, None)
INDICES = st.sets(st.integers(0, TOTAL - 1))


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
        #: of each job that has a preview and a checkpoint in the bucket, the key of the former
        self.drafts: dict[int, str] = {}
        #: what was stored for each key
        self.bodies: dict[str, bytes] = {}

    # -- jobs ------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, TOTAL), failing=INDICES, drafting=INDICES, parking=INDICES)
    def run(self, count: int, failing: set[int], drafting: set[int], parking: set[int]) -> None:
        for lease in self.farm.ledger.lease("mini", "w", count, lease_s=1000):
            if lease.index in parking:
                # its next lease comes within this very rule, or a later one
                self.farm.bucket.put(checkpoint_key("b", lease.index, lease.epoch), b"latents")
                assert self.farm.ledger.park([lease]) == 1
            else:
                draft = lease.index in drafting and not lease.finish
                self.jobs[lease.index] = self.end(lease, fail=lease.index in failing, draft=draft)

    def end(self, lease: Lease, *, fail: bool, draft: bool) -> Outcome:
        if fail:
            code = f"code{lease.epoch % 1000}"
            assert self.farm.ledger.fail(lease, {"code": code, "message": "m"}) in {"failed", "full"}
            return JobState.FAILED, None, code
        receipt = store_draft(self.farm, lease) if draft else store(self.farm, lease)
        assert self.farm.ledger.commit([(lease, receipt)])[0] in {"done", "full"}
        if draft:
            self.drafts[lease.index] = receipt["key"]
        return JobState.DRAFTED if draft else JobState.DONE, receipt["key"], None

    @precondition(lambda self: not self.cancelled)
    @rule(indices=INDICES)
    def finish(self, indices: set[int]) -> None:
        drafted = [index for index in indices if self.jobs[index][0] is JobState.DRAFTED]
        assert self.farm.ledger.finish("b", sorted(indices)) == len(drafted)
        for index in drafted:
            self.jobs[index] = PENDING

    @rule(indices=INDICES, dies=st.booleans())
    def discard(self, indices: set[int], *, dies: bool) -> None:
        """``dies``: before what the drafts have stored is deleted."""
        drafted = [index for index in indices if self.jobs[index][0] is JobState.DRAFTED]
        found = self.farm.ledger.discard("b", sorted(indices))
        assert [index for index, _ in found] == sorted(drafted)
        for index, epoch in found:
            self.jobs[index] = CANCELLED
            if not dies:
                self.farm.bucket.delete([make("b", index, epoch) for make in (checkpoint_key, draft_key)])
                del self.drafts[index]

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
        kept = TERMINAL_STATES - {JobState.DRAFTED}
        complete = {state for state, _, _ in self.jobs} <= kept
        self.batch.cancel()
        if not complete:
            self.cancelled = True
            self.jobs = [job if job[0] in kept else CANCELLED for job in self.jobs]

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
        for index, (state, _, _) in enumerate(self.jobs):
            if state in TERMINAL_STATES - {JobState.DRAFTED}:
                self.drafts.pop(index, None)

    # -- recoveries ------------------------------------------------------------------------------------------

    @rule(ledger_is_lost=st.booleans())
    def recover(self, *, ledger_is_lost: bool) -> None:
        stored = {line["index"]: line for line in self.newest_lines()}
        if ledger_is_lost:
            self.farm.ledger.redis.flushall()
        recover_batch(self.farm.ledger, self.farm.bucket, "b")
        self.jobs = [
            self.recovered(index, job, stored.get(index, {}), ledger_is_lost=ledger_is_lost)
            for index, job in enumerate(self.jobs)
        ]

    def recovered(self, index: int, job: Outcome, line: dict[str, Any], *, ledger_is_lost: bool) -> Outcome:
        if job[0] is JobState.DONE:
            return job
        if not self.cancelled:
            if job == CANCELLED and (not ledger_is_lost or line.get("state") == "cancelled"):
                return job
            if index in self.drafts:
                # also one that was to be finished
                return JobState.DRAFTED, self.drafts[index], None
        if line.get("state") == "failed":
            # also a job whose retry has not ended
            return JobState.FAILED, None, line["error"]["code"]
        if job[0] is JobState.FAILED and not ledger_is_lost:
            return job
        return CANCELLED if self.cancelled else PENDING

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
        self.run(TOTAL, set(), set(), set())
        for flush in self.names_values():
            while flush.step():
                pass
        self.flush_as_a_client()
        self.results_jobs_and_ledger_agree()
        self.fetch()
        collect_orphans(self.farm.ledger, self.farm.bucket, "b")
        # no checkpoint is left of a job that has ended
        kept = [index for index, (state, _, _) in enumerate(self.jobs) if state is JobState.DRAFTED]
        found = sorted(self.farm.bucket.keys(drafts_prefix("b")))
        assert [(parse_draft_key(key) or (-1, 0))[0] for key in found] == [index for index in kept for _ in range(2)]
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
