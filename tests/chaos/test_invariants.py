"""The checks see what they are there for: each invariant is broken on purpose."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tests.chaos.fault_log import FaultLog, Kill, Return, Spell
from tests.chaos.faults import KINDS, schedule
from tests.chaos.invariants import Losses, check_farm
from tests.chaos.journal import Entry
from tests.chaos.producer import Plan
from tests.chaos.recovery import Recovery, recovery, resumption, work_again

from latentfarm import Farm
from latentfarm.storage.keys import batch_prefix, checkpoint_key, draft_key, image_key, results_key
from latentfarm.storage.results import flush_due

pytestmark = pytest.mark.integration

ROWS = 3


def png_bytes() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, format="PNG")
    return out.getvalue()


@pytest.fixture
def plan(farm: Farm) -> Plan:
    """A finished batch."""
    farm.submit([{"prompt": "p"}] * ROWS, batch="b", model="fake")
    body = png_bytes()
    for lease in farm.ledger.lease("fake", "w", ROWS, lease_s=30):
        key = image_key(lease.batch, lease.index, lease.epoch)
        farm.bucket.put(key, body)
        farm.ledger.commit([(lease, {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)})])
    flush_due(farm.ledger, farm.bucket)
    return Plan("b", "fake", Path("prompts.jsonl"), ROWS, {})


def an_image(farm: Farm) -> str:
    return next(key for key in farm.bucket.keys(batch_prefix("b")) if "/images/" in key)


def lose_an_object(farm: Farm) -> None:
    farm.bucket.delete([an_image(farm)])


def add_an_object(farm: Farm) -> None:
    key = an_image(farm)
    epoch = key.rpartition("-")[2].removesuffix(".png")
    farm.bucket.put(key.replace(epoch, str(int(epoch) + 1)), png_bytes())


def change_an_object(farm: Farm) -> None:
    farm.bucket.put(an_image(farm), png_bytes() + b"more")


def lose_the_results(farm: Farm) -> None:
    farm.bucket.delete([results_key("b", 0)])


def hold_a_lease(farm: Farm) -> None:
    farm.ledger.redis.zadd("{lf}:leases", {"b/1": 1})


def leave_a_checkpoint(farm: Farm) -> None:
    farm.bucket.put(checkpoint_key("b", 1, 5), b"checkpoint")


def leave_a_preview(farm: Farm) -> None:
    farm.bucket.put(draft_key("b", 1, 5), png_bytes())


def remember_a_checkpoint(farm: Farm) -> None:
    farm.ledger.redis.hset("{lf}:checkpoints:b", "1", "5 0")


def miscount(farm: Farm) -> None:
    farm.ledger.redis.hincrby("{lf}:batch:b", "drafted", 1)


def reopen(farm: Farm) -> None:
    farm.ledger.redis.hset("{lf}:batch:b", mapping={"state": "open", "done": ROWS - 1})


@pytest.mark.parametrize(
    ("harm", "invariant"),
    [
        (lose_an_object, "every job done has its object"),
        (add_an_object, "every job has one object"),
        (change_an_object, "images decode and match their receipts"),
        (lose_the_results, "parts of results are complete"),
        (hold_a_lease, "no lease is left"),
        (reopen, "done + failed + discarded = manifest"),
        (leave_a_checkpoint, "no checkpoint outlives its job"),
        (leave_a_preview, "no checkpoint outlives its job"),
        (remember_a_checkpoint, "no checkpoint outlives its job"),
        (miscount, "counts agree with states"),
    ],
)
def test_a_broken_invariant_is_found(farm: Farm, plan: Plan, harm: Callable[[Farm], None], invariant: str) -> None:
    assert list(check_farm(farm, [plan], []).lines()) == []
    harm(farm)
    assert invariant in check_farm(farm, [plan], []).violations


@pytest.mark.parametrize(("drafts", "wrong"), [({0, 2}, 0), ({0, 1, 2}, 1)])
def test_a_draft_that_does_not_end_as_chosen_is_found(farm: Farm, plan: Plan, drafts: set[int], wrong: int) -> None:
    # all are done, and drafts of an odd index are to be discarded
    found = check_farm(farm, [replace(plan, drafts=frozenset(drafts))], [])
    assert len(found.violations["every draft ends as chosen, and no other job"]) == wrong


def lease(at_s: float, epoch: int, *, pid: int = 1) -> Entry:
    return Entry(at_s - 0.1, at_s, pid, "lease", "b/0", epoch)


def draft(at_s: float, epoch: int) -> Entry:
    return Entry(at_s - 0.1, at_s, 1, "draft", "b/0", epoch, "done")


def commit(at_s: float, epoch: int, *, pid: int = 1) -> Entry:
    return Entry(at_s - 0.1, at_s, pid, "commit", "b/0", epoch, "done")


@pytest.mark.parametrize(
    ("entries", "invariant"),
    [
        ([lease(1, 5), lease(2, 5, pid=2)], "no job is leased twice under an epoch"),
        ([lease(1, 5), lease(2, 4, pid=2)], "epochs rise"),
        ([lease(1, 5), lease(2, 6, pid=2), commit(3, 5)], "no stale epoch commits"),
        ([lease(1, 5), commit(2, 5), commit(3, 5)], "no job is committed twice"),
        ([lease(1, 5), draft(2, 5), lease(3, 6), draft(4, 6)], "no draft is made twice"),
        ([lease(1, 5), lease(2, 6, pid=2), draft(3, 5)], "no stale epoch commits"),
    ],
)
def test_a_violation_in_a_journal_is_found(farm: Farm, plan: Plan, entries: list[Entry], invariant: str) -> None:
    assert invariant in check_farm(farm, [plan], entries).violations


def test_a_late_answer_is_no_violation(farm: Farm, plan: Plan) -> None:
    late = Entry(0.9, 9.0, 1, "lease", "b/0", 5)
    entries = [late, lease(5, 6, pid=2), commit(6, 6, pid=2)]
    assert list(check_farm(farm, [plan], entries).lines()) == []


def test_a_draft_that_is_finished_is_no_violation(farm: Farm, plan: Plan) -> None:
    entries = [lease(1, 5), draft(2, 5), lease(3, 6), commit(4, 6)]
    assert list(check_farm(farm, [plan], entries).lines()) == []


def test_recovery_is_measured_from_the_kill_to_the_commit_by_another_worker() -> None:
    entries = [lease(1, 5), lease(6, 6, pid=2), commit(7, 6, pid=2)]
    assert recovery(entries, [Kill(2.0, 1)]) == Recovery([5.0])
    # a draft is work that is done, and what is made of it later counts no more
    drafted = [lease(1, 5), lease(6, 6), draft(7, 6), lease(20, 7), commit(21, 7)]
    assert recovery(drafted, [Kill(2.0, 1)]) == Recovery([5.0])


def test_a_worker_carries_on_with_the_first_answer_after_redis_is_back() -> None:
    entries = [lease(1, 5), lease(1, 6, pid=2), lease(6, 7), commit(7, 6, pid=2)]
    assert resumption(entries, [Return(2.0, (1, 2))]) == Recovery([4.0, 5.0])
    # Redis became unavailable again to one worker, and one had not started before
    assert resumption(entries, [Return(0.5, (1,)), Return(2.0, (1, 2)), Return(6.5, (2,))]) == Recovery([4.0, 0.5])


def test_work_again_is_measured_where_no_other_fault_of_redis_or_the_store_overlaps() -> None:
    entries = [lease(1, 5), lease(1, 6, pid=2), commit(6, 5), commit(8, 6, pid=2)]
    ended = Spell("S3: down", 1.0, 4.0, (1, 2))
    assert work_again(entries, FaultLog(spells=[ended])) == {"S3: down": Recovery([2.0, 4.0])}
    other = Spell("freeze Redis", 6.5, 7.0, ())
    assert work_again(entries, FaultLog(spells=[ended, other]))["S3: down"] == Recovery([2.0])


def test_a_commit_that_a_failover_forgot_may_happen_again(farm: Farm, plan: Plan) -> None:
    entries = [lease(1, 5), commit(2, 5), lease(4, 6, pid=2), commit(5, 6, pid=2)]
    assert "no job is committed twice" in check_farm(farm, [plan], entries).violations
    assert list(check_farm(farm, [plan], entries, Losses(frozenset({"b/0"}), failovers_s=[2.5])).lines()) == []


def test_a_seed_gives_the_same_faults_again_and_every_kind() -> None:
    first = schedule(7, 180, 5)
    assert first == schedule(7, 180, 5)
    assert {fault.kind for fault in first} == set(KINDS)
    assert first != schedule(8, 180, 5)
