"""Random histories of the ledger against a plain model of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from latentfarm.job import ALLOWED_MOVES, TERMINAL_STATES, JobState
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.ledger import MAX_ATTEMPTS

pytestmark = pytest.mark.integration

TOTAL = 6


class LedgerMoves(RuleBasedStateMachine):
    ledger: Ledger
    leases = Bundle("leases")

    @initialize()
    def open_batch(self) -> None:
        self.ledger.redis.flushall()
        self.ledger.reserve("b", digest="d", model="m", total=TOTAL)
        self.ledger.open("b")
        self.states = [JobState.PENDING] * TOTAL
        self.epochs: dict[int, int] = {}
        self.charged = [0] * TOTAL
        self.highest = 0

    def move(self, index: int, state: JobState) -> None:
        assert (self.states[index], state) in ALLOWED_MOVES
        self.states[index] = state

    def holds(self, lease: Lease) -> bool:
        return self.epochs.get(lease.index) == lease.epoch

    @rule(target=leases, k=st.integers(1, 4))
    def lease(self, k: int) -> Any:
        found = self.ledger.lease("m", "w", k, lease_s=1000)
        assert len(found) == min(k, self.states.count(JobState.PENDING))
        for each in found:
            assert each.epoch > self.highest
            assert each.attempts == self.charged[each.index]
            self.highest = each.epoch
            self.move(each.index, JobState.LEASED)
            self.epochs[each.index] = each.epoch
        return multiple(*found)

    @rule(lease=leases)
    def commit(self, lease: Lease) -> None:
        outcome = self.ledger.commit(lease, {"index": lease.index})
        if self.holds(lease):
            del self.epochs[lease.index]
            self.move(lease.index, JobState.DONE)
            assert outcome == ("full" if set(self.states) <= TERMINAL_STATES else "done")
        else:
            assert outcome in {"stale", "again"}

    @rule(lease=leases, retry=st.booleans())
    def fail(self, lease: Lease, *, retry: bool) -> None:
        outcome = self.ledger.fail(lease, {"code": "x", "message": "y"}, retry=retry)
        if not self.holds(lease):
            assert outcome == "stale"
            return
        del self.epochs[lease.index]
        self.charged[lease.index] += 1
        again = retry and self.charged[lease.index] < MAX_ATTEMPTS
        self.move(lease.index, JobState.PENDING if again else JobState.FAILED)
        assert (outcome == "retry") == again

    @rule(lease=consumes(leases))
    def release(self, lease: Lease) -> None:
        assert self.ledger.release([lease]) == int(self.holds(lease))
        if self.holds(lease):
            del self.epochs[lease.index]
            self.move(lease.index, JobState.PENDING)

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        assert (self.ledger.renew([lease], lease_s=1000) == set()) == self.holds(lease)

    @rule(lease=leases)
    def expire(self, lease: Lease) -> None:
        name = lease.name
        self.ledger.redis.zadd("lf:leases", {name: 1}, xx=True)
        self.ledger.redis.delete("lf:sweeper")
        held = lease.index in self.epochs
        assert self.ledger.sweep() == int(held)
        if held:
            del self.epochs[lease.index]
            self.charged[lease.index] += 1
            lost = self.charged[lease.index] >= MAX_ATTEMPTS
            self.move(lease.index, JobState.FAILED if lost else JobState.PENDING)

    @invariant()
    def ties_are_broken_by_index(self) -> None:
        # jobs that came back within one millisecond and within two would be leased in another order
        client: Any = self.ledger.redis
        for index in client.zrange("lf:again:b", 0, -1):
            client.zadd("lf:again:b", {index: 1})

    @invariant()
    def the_ledger_agrees(self) -> None:
        if not hasattr(self, "states"):
            return
        assert self.ledger.states("b", 0, TOTAL) == self.states
        record = self.ledger.batch("b")
        counted = (record.pending, record.leased, record.done, record.failed)
        states = (JobState.PENDING, JobState.LEASED, JobState.DONE, JobState.FAILED)
        assert counted == tuple(self.states.count(state) for state in states)
        assert record.complete == (set(self.states) <= TERMINAL_STATES)
        assert self.ledger.redis.zcard("lf:leases") == self.ledger.redis.hlen("lf:holders") == len(self.epochs)


def test_every_history_agrees_with_the_model(ledger: Ledger) -> None:
    LedgerMoves.ledger = ledger
    LedgerMoves.TestCase.settings = settings(
        max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    LedgerMoves.TestCase("runTest").runTest()
