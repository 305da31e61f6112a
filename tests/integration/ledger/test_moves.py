"""Random histories of the ledger against a plain model of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from tests.support.leasing import make_due

from latentfarm.batch_state import BatchState, PausedBy
from latentfarm.batch_status import batch_status
from latentfarm.errors import InputError
from latentfarm.job_state import ALLOWED_MOVES, TERMINAL_STATES, JobState
from latentfarm.ledger import Company, Lease, Ledger, Restoration
from latentfarm.ledger.constants import MAX_ATTEMPTS

pytestmark = pytest.mark.integration

TOTAL = 6
#: an invalid row: its job has failed before it was ever leased
INVALID = 4


class LedgerMoves(RuleBasedStateMachine):
    ledger: Ledger
    leases = Bundle("leases")

    @initialize()
    def open_batch(self) -> None:
        self.ledger.redis.flushall()
        self.ledger.create_batch("b", digest="d", model="m", budget=0)
        invalid = {INVALID: {"code": "invalid_row", "message": "w"}}
        self.ledger.append_jobs("b", before=0, total=TOTAL, parts_digest="c", closed=False, invalid=invalid)
        self.states = [JobState.PENDING] * TOTAL
        self.states[INVALID] = JobState.FAILED
        self.epochs: dict[int, int] = {}
        self.charged = [0] * TOTAL
        self.codes = ["invalid_row"] * TOTAL
        self.workers: dict[int, str] = {}
        self.lost_by: list[list[str]] = [[] for _ in range(TOTAL)]
        #: of each job whose receipt the ledger has, the epoch in it
        self.receipts: dict[int, int] = {}
        self.highest = self.request = 0
        #: the last request of each worker that was given leases, and its leases
        self.replies: dict[str, tuple[int, list[Lease]]] = {}
        self.closed = self.paused = self.cancelled = self.flushed = False
        #: whether a job has ended since the part was flushed, even if all that did were retried
        self.counted = True
        #: of each job that has one, the epoch of its checkpoint, 0 for none, and whether it is to be finished
        self.checkpoints: dict[int, tuple[int, bool]] = {}
        #: the states that the jobs had at each version of them
        self.versions: dict[tuple[bytes, ...], list[JobState]] = {}

    @property
    def ended(self) -> bool:
        return set(self.states) <= TERMINAL_STATES

    @property
    def complete(self) -> bool:
        return self.closed and set(self.states) <= TERMINAL_STATES - {JobState.DRAFTED}

    @rule()
    def close(self) -> None:
        self.ledger.append_jobs("b", before=TOTAL, total=TOTAL, parts_digest="c", closed=True)
        self.closed |= not self.cancelled
        self.end_pause_if_complete()

    @rule(now=st.booleans())
    def pause(self, *, now: bool) -> None:
        self.ledger.pause("b", PausedBy.USER, now=now)
        self.paused |= not (self.cancelled or self.complete)

    @rule()
    def resume(self) -> None:
        self.ledger.resume("b")
        self.paused = False

    @rule(dice=st.integers(0, 15))
    def cancel(self, dice: int) -> None:
        if dice:
            return  # nothing happens after it, so it comes rarely
        self.ledger.cancel("b")
        if self.complete:
            return
        if JobState.DRAFTED in self.states:
            self.flushed, self.counted = False, True
        self.cancelled, self.paused = True, False
        self.checkpoints.clear()
        for index, state in enumerate(self.states):
            if state not in TERMINAL_STATES or state is JobState.DRAFTED:
                self.move(index, JobState.CANCELLED)
        self.epochs.clear()

    @rule(index=st.integers(0, TOTAL - 1))
    def retry(self, index: int) -> None:
        if self.cancelled:
            with pytest.raises(InputError):
                self.ledger.retry("b", [(index, "x")])
            return
        failed = self.states[index] is JobState.FAILED
        assert self.ledger.retry("b", [(index, self.codes[index])]) == int(failed)
        if failed:
            self.move(index, JobState.PENDING)
            self.run_again(index)

    @rule(indices=st.lists(st.integers(0, TOTAL - 1), unique=True))
    def finish(self, indices: list[int]) -> None:
        drafted = [index for index in indices if self.states[index] is JobState.DRAFTED]
        if self.cancelled:
            with pytest.raises(InputError):
                self.ledger.finish("b", indices)
            return
        assert self.ledger.finish("b", indices) == len(drafted)
        for index in drafted:
            self.move(index, JobState.PENDING)
            self.run_again(index)
            self.checkpoints[index] = self.checkpoints[index][0], True

    @rule(indices=st.lists(st.integers(0, TOTAL - 1), unique=True))
    def discard(self, indices: list[int]) -> None:
        drafted = [index for index in indices if self.states[index] is JobState.DRAFTED]
        epochs = {index: self.checkpoints[index][0] for index in drafted}
        assert self.ledger.discard("b", indices) == list(epochs.items())
        for index in drafted:
            self.move(index, JobState.CANCELLED)
            self.run_again(index)
            del self.checkpoints[index]
        self.end_pause_if_complete()

    def run_again(self, index: int) -> None:
        """The job has not run, and its line is outdated."""
        self.charged[index], self.lost_by[index], self.flushed, self.counted = 0, [], False, True
        self.receipts.pop(index, None)

    def drop_checkpoint(self, index: int) -> None:
        """The job goes on from no checkpoint. What was to be finished still is."""
        if self.checkpoints.pop(index, (0, False))[1]:
            self.checkpoints[index] = 0, True

    @rule()
    def flush(self) -> None:
        if self.ledger.full_parts():
            assert self.ledger.drop_flushed("b", 0, retries=self.ledger.batch("b").retries)
            self.receipts.clear()
            self.flushed = True

    def move(self, index: int, state: JobState) -> None:
        assert (self.states[index], state) in ALLOWED_MOVES
        self.states[index] = state
        self.counted |= state in {JobState.DONE, JobState.FAILED, JobState.DRAFTED}

    def end_pause_if_complete(self) -> None:
        self.paused &= not self.complete

    def holds(self, lease: Lease) -> bool:
        return self.epochs.get(lease.index) == lease.epoch

    @rule(target=leases, k=st.integers(1, 4), worker=st.sampled_from("wwwv"), alone=st.booleans())
    def lease(self, k: int, worker: str, *, alone: bool) -> Any:
        self.request += 1
        return self.request_leases(worker, k, self.request, alone=alone)

    @rule(target=leases, k=st.integers(1, 4), worker=st.sampled_from("wv"))
    def repeat_request(self, k: int, worker: str) -> Any:
        """The worker repeats its last request, as if the reply had been lost."""
        request, leases = self.replies.get(worker, (0, []))
        if not request:
            return multiple()
        held = [each for each in leases if self.holds(each)]
        if not held:
            return self.request_leases(worker, k, request, alone=True)
        assert self.ledger.lease("m", worker, k, lease_s=1000, request=str(request)) == held
        return multiple(*held)

    def company(self, index: int) -> Company:
        lost_by = self.lost_by[index]
        if self.charged[index] or len(lost_by) > 1 or any(entry.startswith("crash:") for entry in lost_by):
            return Company.ALONE
        return Company.LOST if lost_by else Company.ANY

    def request_leases(self, worker: str, k: int, request: int, *, alone: bool) -> Any:
        found = self.ledger.lease("m", worker, k, lease_s=1000, request=str(request), alone=alone)
        if found:
            self.replies[worker] = request, found
        companies = [self.company(index) for index, state in enumerate(self.states) if state is JobState.PENDING]
        suspects = companies.count(Company.ALONE)
        available = len(companies) - suspects + min(suspects, int(alone))
        assert len(found) == (0 if self.paused else min(k, available))
        # one worker has one job at a time that runs alone
        assert [each.company for each in found].count(Company.ALONE) <= int(alone)
        before = self.highest
        for each in found:
            assert each.company is self.company(each.index)
            assert each.epoch > before
            assert each.attempts == self.charged[each.index]
            assert (each.checkpoint, each.finish) == self.checkpoints.get(each.index, (0, False))
            self.highest = each.epoch
            self.move(each.index, JobState.LEASED)
            self.epochs[each.index] = each.epoch
            self.workers[each.index] = worker
        return multiple(*found)

    @rule(lease=leases, draft=st.booleans())
    def commit(self, lease: Lease, *, draft: bool) -> None:
        [outcome] = self.ledger.commit([(lease, {"draft": {"evaluations": 1}} if draft else {"index": lease.index})])
        if self.holds(lease):
            del self.epochs[lease.index]
            self.receipts[lease.index] = lease.epoch
            self.move(lease.index, JobState.DRAFTED if draft else JobState.DONE)
            self.checkpoints.pop(lease.index, None)
            if draft:
                self.checkpoints[lease.index] = lease.epoch, False
            self.end_pause_if_complete()
            assert outcome == ("full" if self.ended else "done")
        else:
            known = {self.receipts.get(lease.index), self.checkpoints.get(lease.index, (0,))[0]}
            assert outcome == ("repeated" if lease.epoch in known else "stale")
            if outcome == "stale":
                self.clear_losses(lease.index)

    @rule(lease=leases, retry=st.booleans())
    def fail(self, lease: Lease, *, retry: bool) -> None:
        outcome = self.ledger.fail(lease, {"code": "x", "message": "y"}, retry=retry)
        if not self.holds(lease):
            assert outcome == "stale"
            return
        del self.epochs[lease.index]
        self.charged[lease.index] += 1
        self.codes[lease.index] = "x"
        again = retry and self.charged[lease.index] < MAX_ATTEMPTS
        self.move(lease.index, JobState.PENDING if again else JobState.FAILED)
        self.drop_checkpoint(lease.index)
        self.end_pause_if_complete()
        assert (outcome == "retry") == again

    @rule(lease=consumes(leases), park=st.booleans())
    def release(self, lease: Lease, *, park: bool) -> None:
        give_back = self.ledger.park if park else self.ledger.release
        assert give_back([lease]) == int(self.holds(lease))
        if self.holds(lease):
            if park:
                self.checkpoints[lease.index] = lease.epoch, lease.finish
            del self.epochs[lease.index]
            self.move(lease.index, JobState.PENDING)

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        assert (self.ledger.renew([lease], lease_s=1000) == set()) == self.holds(lease)
        if not self.holds(lease):
            self.clear_losses(lease.index)

    def clear_losses(self, index: int) -> None:
        """A worker that lost the job lives."""
        self.lost_by[index] = [entry for entry in self.lost_by[index] if entry.startswith("crash:")]

    @rule(lease=leases)
    def expire(self, lease: Lease) -> None:
        name = lease.name
        self.ledger.redis.zadd("{lf}:leases", {name: 1}, xx=True)
        self.ledger.redis.delete("{lf}:sweep_lock")
        held = lease.index in self.epochs
        assert self.ledger.expire_leases() == int(held)
        if held:
            self.lose(lease.index, self.workers[lease.index])

    @rule(lease=leases)
    def crash(self, lease: Lease) -> None:
        held = self.holds(lease)
        [outcome] = self.ledger.record_crash([lease])
        assert (outcome == "stale") == (not held)
        if held:
            self.lose(lease.index, f"crash:{self.workers[lease.index]}")
            assert (outcome == "poison") == (self.states[lease.index] is JobState.FAILED)

    @rule(worker=st.sampled_from("wv"), dice=st.integers(0, 3))
    def end_worker(self, worker: str, dice: int) -> None:
        """The worker's process dies in a call for those of its jobs whose index is a multiple of a number."""
        held = [index for index in self.epochs if self.workers[index] == worker]
        crashed = [index for index in held if dice and index % dice == 0]
        at_risk = [(f"b/{index}", self.epochs[index]) for index in crashed]
        assert self.ledger.end_worker(worker, at_risk) == (len(held) - len(crashed), len(crashed))
        for index in held:
            if index in crashed:
                self.lose(index, f"crash:{worker}")
            else:
                del self.epochs[index]
                self.move(index, JobState.PENDING)

    def lose(self, index: int, entry: str) -> None:
        del self.epochs[index]
        lost_by = self.lost_by[index]
        lost_by.append(entry)
        crashes = sum(1 for each in lost_by if each.startswith("crash:"))
        poisoned = crashes >= 3 or len(lost_by) >= 6
        if poisoned:
            self.codes[index] = "poison"
        if poisoned or entry.startswith("crash:"):
            self.drop_checkpoint(index)
        self.move(index, JobState.FAILED if poisoned else JobState.PENDING)
        self.end_pause_if_complete()

    @rule()
    def recover(self) -> None:
        restoration = Restoration(self.ledger, "b")
        paused = PausedBy.USER if self.paused else PausedBy.NOT_PAUSED
        fields: dict[str, str | int | float] = {"digest": "d", "model": "m", "webhook": "", "paused_by": paused}
        fields |= {"priority": 0, "budget": 0, "canary": 0}
        restoration.begin(total=TOTAL, fields=fields)
        for index in list(self.epochs):
            self.move(index, JobState.PENDING)
        self.epochs.clear()
        proved = {JobState.DONE, JobState.FAILED, JobState.DRAFTED}
        if not self.cancelled:
            # of a draft that was discarded
            proved.add(JobState.CANCELLED)
        states = [state if state in proved else JobState.PENDING for state in self.states]
        kept = {} if self.flushed else {index: {"epoch": epoch} for index, epoch in self.receipts.items()}
        drafts = {index: self.checkpoints[index][0] for index, state in enumerate(states) if state is JobState.DRAFTED}
        failed = [index for index, state in enumerate(states) if state is JobState.FAILED]
        errors = {index: {"code": self.codes[index], "message": "m"} for index in failed}
        restoration.write_part(0, states, receipts=kept, errors=errors, flushed=self.flushed, drafts=drafts)
        restoration.end(parts_digest="c", closed=self.closed, cancelled=self.cancelled)
        self.charged = [0] * TOTAL
        self.lost_by = [[] for _ in range(TOTAL)]
        self.counted = bool(proved & set(states))
        # no mark to finish is in the bucket
        self.checkpoints = {index: (epoch, False) for index, epoch in drafts.items()}

    @invariant()
    def ties_are_broken_by_index(self) -> None:
        # jobs that came back within one millisecond and within two would be leased in another order
        # and a delay would have to pass
        make_due(self.ledger, "b")

    def open_state(self) -> str:
        return "open" if self.closed else "opening"

    @invariant()
    def the_ledger_agrees(self) -> None:
        if not hasattr(self, "states"):
            return
        assert self.ledger.states("b", 0, TOTAL) == self.states
        total, version = self.ledger.states_version("b")
        assert total == TOTAL
        assert self.versions.setdefault(version, list(self.states)) == self.states
        record = self.ledger.batch("b")
        assert [getattr(record, state.word) for state in JobState] == [self.states.count(state) for state in JobState]
        assert record.state == ("cancelled" if self.cancelled else "complete" if self.complete else self.open_state())
        settled = self.closed and self.ended and not (self.complete or self.cancelled or self.paused)
        assert (batch_status(record).state is BatchState.DRAFTED) == settled
        assert bool(record.paused_by) == self.paused
        failed = [index for index, state in enumerate(self.states) if state is JobState.FAILED]
        assert record.errors == Counter(self.codes[index] for index in failed)
        to_flush = (self.ended or self.cancelled) and self.counted and not self.flushed
        assert self.ledger.full_parts() == ([("b", 0)] if to_flush else [])
        assert self.ledger.redis.zcard("{lf}:leases") == self.ledger.redis.hlen("{lf}:holders") == len(self.epochs)
        client: Any = self.ledger.redis
        requeued, suspects = (
            {*map(int, client.zrange(f"{{lf}}:{queue}:b", 0, -1))} for queue in ("requeued", "suspects")
        )
        assert not requeued & suspects
        assert all(self.states[index] is JobState.PENDING for index in requeued | suspects)
        checkpoints = {index: f"{epoch} {finish:d}" for index, (epoch, finish) in self.checkpoints.items()}
        found = client.hgetall("{lf}:checkpoints:b")
        assert {int(index): value.decode() for index, value in found.items()} == checkpoints
        for index, state in enumerate(self.states):
            if state in TERMINAL_STATES:
                # an ended job has no checkpoint, but a failed one that was to be finished stays so
                assert (self.checkpoints.get(index, (0,))[0] > 0) == (state is JobState.DRAFTED)


def test_every_history_agrees_with_the_model(ledger: Ledger) -> None:
    LedgerMoves.ledger = ledger
    LedgerMoves.TestCase.settings = settings(
        max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    LedgerMoves.TestCase("runTest").runTest()
