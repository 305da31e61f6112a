"""Random histories of several batches: what a lease finds by its queues is what reading every batch would find."""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.leasing import fail, lease, make_due, opened

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState, PausedBy
from latentfarm.job_state import JobState
from latentfarm.ledger import Lease, Ledger, Restoration
from latentfarm.ledger.constants import LUA_CONSTANTS, SCHEMA_KEY

pytestmark = pytest.mark.integration

NAMES = st.sampled_from("abc")
ACCOUNTS = st.sampled_from(
    [
        (BatchKind.SUBMITTED, ""),
        (BatchKind.SUBMITTED, "alice"),
        (BatchKind.INTERACTIVE, ""),
        (BatchKind.OPENAI, "alice"),
    ]
)
STEP = int(LUA_CONSTANTS["PRIORITY_STEP"])
Facts = dict[str, Any]


class BatchQueues(RuleBasedStateMachine):
    ledger: Ledger

    @initialize()
    def start(self) -> None:
        self.client: Any = self.ledger.redis
        self.client.flushall()
        self.held: list[Lease] = []
        self.failed: list[tuple[str, int]] = []

    def facts(self, batch: str) -> Facts:
        """Return the fields of a batch, and when the first of its jobs in each queue may run."""
        found = {key.decode(): value.decode() for key, value in self.client.hgetall(f"{{lf}}:batch:{batch}").items()}
        numbers = {key: float(found[key]) for key in ("priority", "virtual_time", "weight")}
        counters = ("total", "canary", "cursor", "leased", "done", "failed", "cancelled", "drafted")
        counts = {key: int(found[key]) for key in counters}
        now = self.ledger.now_us() // 1000
        due: Facts = {}
        for queue in ("requeued", "suspects"):
            times = [time for _, time in self.client.zrange(f"{{lf}}:{queue}:{batch}", 0, -1, withscores=True)]
            due[queue] = sum(time <= now for time in times)
            due[f"later_{queue}"] = min((time for time in times if time > now), default=None)
            due[f"all_{queue}"] = len(times)
        active = found["state"] in {"open", "opening"}
        runs, sparse = active and not found["paused_by"], found["sparse"] == "1"
        urgent = found["preempt"] == "1" or found["account"] == "interactive/"
        facts = {"name": batch, "account": found["account"], "active": active, "runs": runs, "sparse": sparse}
        facts["urgent"] = urgent
        return {**facts, **numbers, **counts, **due}

    def names(self) -> list[str]:
        return self.ledger.batches(interactive=True)

    def batches(self) -> list[Facts]:
        return [self.facts(name) for name in self.names()]

    @staticmethod
    def limit(batch: Facts) -> int:
        return int(min(batch["total"], batch["canary"] or batch["total"]))

    def ready(self, batch: Facts) -> int:
        """Return how many jobs a lease may take, without those that run alone."""
        return int(batch["runs"] * (batch["requeued"] + max(0, self.limit(batch) - batch["cursor"])))

    # -- changes ---------------------------------------------------------------------------------------------

    @rule(
        batch=NAMES,
        total=st.integers(1, 60),
        priority=st.integers(-1, 1),
        weight=st.integers(1, 3),
        account=ACCOUNTS,
        preempt=st.booleans(),
    )
    def submit(
        self, batch: str, total: int, priority: int, weight: int, account: tuple[BatchKind, str], *, preempt: bool
    ) -> None:
        if batch not in self.names():
            canary = total // 2 if weight == 2 else 0
            options: Facts = {"priority": priority, "weight": weight, "canary": canary, "preempt": preempt}
            opened(self.ledger, batch, total, kind=account[0], owner=account[1], **options)

    @rule(k=st.integers(1, 80), alone=st.booleans(), urgent=st.booleans())
    def lease(self, k: int, *, alone: bool, urgent: bool) -> None:
        batches = self.batches()
        allowed = [each for each in batches if each["urgent"] or not urgent]
        expected = self.expected(k, allowed, alone=alone)
        found = self.ledger.lease("mini", "w", k, lease_s=1000, alone=alone, urgent=urgent)
        self.held += found
        assert [each.batch for each in found] == expected
        interactive = {each["name"] for each in batches if each["account"] == "interactive/"}
        assert [each.interactive for each in found] == [each.batch in interactive for each in found]
        preempting = {each["name"] for each in batches if each["urgent"]}
        assert [each.urgent for each in found] == [each.batch in preempting for each in found]

    def expected(self, k: int, batches: list[Facts], *, alone: bool) -> list[str]:
        """Return the batch of each job, by reading every batch before every run of jobs."""
        taken = list[str]()
        while len(taken) < k:
            first = min((each for each in batches if self.ready(each)), key=self.order, default=None)
            suspected = [each for each in batches if each["runs"] and each["suspects"] and alone]
            suspect = min(suspected, key=self.order, default=None)
            if suspect and (first is None or self.order(suspect) <= self.order(first)):
                batch, count, alone = suspect, 1, False
                batch["suspects"] -= 1
            elif first:
                peers = sum(1 for each in batches if self.ready(each) and each["priority"] == first["priority"])
                most = k if peers == 1 else max(32, ceil(k / 2))
                batch, count = first, min(self.ready(first), most, k - len(taken))
                again = min(count, batch["requeued"])
                batch["requeued"] -= again
                batch["cursor"] += count - again
            else:
                break
            batch["virtual_time"] += count / batch["weight"]
            taken += [batch["name"]] * count
        return taken

    @staticmethod
    def order(batch: Facts) -> Any:
        return batch["virtual_time"] - batch["priority"] * STEP, batch["name"]

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(), end=st.sampled_from(["commit", "draft", "release", "park", "fail", "retry now", "retry later"])
    )
    def end_lease(self, data: st.DataObject, end: str) -> None:
        each = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if end == "commit":
            self.ledger.commit([(each, {})])
        elif end == "draft":
            self.ledger.commit([(each, {"draft": {}})])
        elif end == "release":
            self.ledger.release([each])
        elif end == "park":
            self.ledger.park([each])
        elif end == "fail":
            fail(self.ledger, [each])
            self.failed.append((each.batch, each.index))
        else:
            delay_s = 0 if end == "retry now" else 1000
            self.ledger.fail(each, {"code": "nan", "message": ""}, retry=True, delay_s=delay_s)

    @rule(batch=NAMES, change=st.sampled_from(["pause", "resume", "cancel", "delete", "make due", "finish", "discard"]))
    def change(self, batch: str, change: str) -> None:
        if batch not in self.names():
            return
        if change == "pause":
            self.ledger.pause(batch, PausedBy.USER)
        elif change == "resume":
            self.ledger.resume(batch)
        elif change == "cancel":
            self.ledger.cancel(batch)
        elif change == "delete":
            self.ledger.mark_deleting(batch)
            self.ledger.delete_batch(batch)
        elif change in {"finish", "discard"}:
            indices = list(self.ledger.indices(batch, JobState.DRAFTED))
            if change == "discard":
                assert [index for index, _ in self.ledger.discard(batch, indices[:1])] == indices[:1]
            elif self.ledger.batch(batch).state is not BatchState.CANCELLED:
                assert self.ledger.finish(batch, indices) == len(indices)
        else:
            make_due(self.ledger, batch)
            # the next lease finds it, also one that takes no job
            self.ledger.lease("mini", "w", 0, lease_s=1000)

    @rule(batch=NAMES, priority=st.integers(-1, 1))
    def set_priority(self, batch: str, priority: int) -> None:
        if batch in self.names():
            self.ledger.set_priority(batch, priority)

    @precondition(lambda self: self.failed)
    @rule()
    def retry(self) -> None:
        batch, index = self.failed.pop()
        if batch in self.names() and self.ledger.batch(batch).state in {"open", "complete"}:
            self.ledger.retry(batch, [(index, "nan")])

    @rule(batch=NAMES, cancelled=st.booleans())
    def recover(self, batch: str, *, cancelled: bool) -> None:
        if batch not in self.names():
            return
        before = self.ledger.batch(batch)
        states = self.ledger.states(batch, 0, before.total)
        restoration = Restoration(self.ledger, batch)
        fields: dict[str, str | int | float] = {"digest": "d", "model": "mini", "webhook": "", "paused_by": ""}
        fields |= {"priority": before.priority, "budget": 0, "canary": 0}
        restoration.begin(total=before.total, fields=fields, kind=before.kind, owner=before.owner)
        kept = [state if state is JobState.DONE else JobState.PENDING for state in states]
        restoration.write_part(0, kept, receipts={}, errors={}, flushed=True)
        restoration.end(parts_digest="c", closed=True, cancelled=cancelled)
        # a plain cursor keeps `ready` simple: which jobs of a recovered batch are pending is tested elsewhere
        first = kept.count(JobState.DONE)
        self.client.hset(f"{{lf}}:batch:{batch}", mapping={"sparse": 0, "cursor": first})
        self.ledger.pause(batch, PausedBy.USER)
        self.ledger.resume(batch)

    # -- what must hold ----------------------------------------------------------------------------------------

    def scores(self, queue: str) -> dict[str, float]:
        found = self.client.zrange(f"{{lf}}:{queue}:mini", 0, -1, withscores=True)
        return {name.decode(): score for name, score in found}

    @invariant()
    def the_queues_have_every_batch_that_has_jobs(self) -> None:
        if not hasattr(self, "client"):
            return
        batches = {each["name"]: each for each in self.batches()}
        order = {name: self.order(each)[0] for name, each in batches.items()}
        assert self.scores("runnable") == {name: order[name] for name, each in batches.items() if self.ready(each)}
        alone = {name for name, each in batches.items() if each["runs"] and each["suspects"]}
        assert self.scores("alone") == {name: order[name] for name in alone}
        urgent = {name for name, each in batches.items() if each["urgent"]}
        for queue, every in (("urgent", "runnable"), ("urgent_alone", "alone")):
            assert self.scores(queue) == {name: at for name, at in self.scores(every).items() if name in urgent}
        later = {
            name: each["later_suspects"]
            for name, each in batches.items()
            if each["runs"] and each["later_suspects"] and name not in alone
        }
        assert self.scores("waiting") == later
        assert self.ledger.count_pending("mini") == sum(map(self.waiting_jobs, batches.values()))
        unfinished: Counter[str] = Counter()
        for each in batches.values():
            if each["active"] and each["account"] != "submitted/":
                unfinished[each["account"]] += self.left(each)
        # an owner whose jobs have all ended has no entry
        counted = {f"{kind}/{owner}": jobs for (kind, owner), jobs in self.ledger.unfinished_by_owner().items()}
        assert counted == +unfinished

    def waiting_jobs(self, batch: Facts) -> int:
        if not batch["runs"]:
            return 0
        if batch["canary"]:
            at_cursor = max(0, self.limit(batch) - batch["cursor"])
            return int(at_cursor + batch["all_requeued"] + batch["all_suspects"])
        return self.left(batch) - int(batch["leased"])

    @staticmethod
    def left(batch: Facts) -> int:
        return int(batch["total"] - sum(batch[end] for end in ("done", "failed", "cancelled", "drafted")))


def test_a_lease_takes_what_reading_every_batch_would_find(ledger: Ledger) -> None:
    BatchQueues.ledger = ledger
    BatchQueues.TestCase.settings = settings(
        max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    BatchQueues.TestCase("runTest").runTest()


def fill_queues(ledger: Ledger, count: int) -> None:
    """Copy an open batch of priority 0 until so many are open."""
    opened(ledger, "first")
    pipe = ledger.redis.pipeline(transaction=False)
    fields: Any = ledger.redis.hgetall("{lf}:batch:first")
    for number in range(count - 1):
        pipe.hset(f"{{lf}}:batch:b{number}", mapping=fields)
        pipe.zadd("{lf}:runnable:mini", {f"b{number}": number})
        pipe.sadd("{lf}:active:mini", f"b{number}")
    pipe.hset("{lf}:pending", "mini", 5 * count)
    pipe.execute()
    assert ledger.redis.exists(SCHEMA_KEY)


def test_a_lease_and_a_heartbeat_cost_the_same_beside_any_number_of_open_batches(ledger: Ledger) -> None:
    fill_queues(ledger, 10_000)
    client: Any = ledger.redis
    client.config_resetstat()
    assert ledger.heartbeat("mini", "worker-a").pending == 50_000
    assert len(lease(ledger, 5)) == 5
    calls = sum(each["calls"] for each in client.info("commandstats").values())
    assert calls < 70
