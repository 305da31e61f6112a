"""What the ledger reports as it happens: events, signals to workers, live reports; and what it keeps for servers."""

from __future__ import annotations

import time
from threading import Thread
from typing import Any

import pytest
from tests.conftest import until
from tests.support.leasing import draft_all, expire, fail, keys_left, lease, opened

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import PausedBy
from latentfarm.errors import UnavailableError
from latentfarm.ledger import (
    INTERACTIVE_PRIORITY,
    Event,
    Ledger,
    LiveReport,
    Restoration,
    Slot,
    SlotsReport,
    WorkerSignal,
)
from latentfarm.ledger.events import STREAM

pytestmark = pytest.mark.integration

INTERACTIVE: dict[str, Any] = {"kind": BatchKind.INTERACTIVE, "owner": "alice", "priority": INTERACTIVE_PRIORITY}


def event_names(ledger: Ledger, after: str = "0-0") -> list[str]:
    return [event.event for event in ledger.read_events(after)]


def test_each_change_of_a_batch_is_an_event(ledger: Ledger) -> None:
    assert ledger.last_event_id() == "0-0"
    opened(ledger, "cats", 2, kind=BatchKind.OPENAI, owner="alice")
    created, is_open = ledger.read_events("0-0")
    assert created == Event(created.id, "created", "cats", "mini", BatchKind.OPENAI, "alice")
    assert (is_open.event, is_open.id) == ("open", ledger.last_event_id())
    ledger.pause("cats", PausedBy.USER)
    # a pause that exists changes nothing
    ledger.pause("cats", PausedBy.USER)
    ledger.resume("cats")
    ledger.set_priority("cats", 3)
    ledger.set_priority("cats", 3)
    done, failed = lease(ledger, 2)
    ledger.commit([(done, {})])
    fail(ledger, [failed])
    ledger.retry("cats", [(failed.index, "nan")])
    ledger.cancel("cats")
    ledger.delete_batch("cats")
    changes = ["paused", "resumed", "priority", "complete", "retried", "cancelled", "deleted"]
    assert event_names(ledger, is_open.id) == changes
    assert [event.event for event in ledger.read_events("0-0", limit=2)] == ["created", "open"]
    assert {(event.batch, event.owner) for event in ledger.read_events("0-0")} == {("cats", "alice")}


def test_a_batch_of_which_nothing_but_drafts_is_left_has_an_event(ledger: Ledger) -> None:
    opened(ledger, "cats", 3)
    after = ledger.last_event_id()
    leases = lease(ledger, 3)
    draft_all(ledger, leases[:1])
    ledger.commit([(leases[1], {})])
    # one that runs may still be a draft
    assert event_names(ledger, after) == []
    draft_all(ledger, leases[2:])
    assert (ledger.finish("cats", [0, 1]), ledger.finish("cats", [0])) == (1, 0)
    ledger.commit([(each, {}) for each in lease(ledger, 3)])
    assert ledger.batch("cats").ended_ms
    assert ledger.discard("cats", [0, 1, 2]) == [(2, leases[2].epoch)]
    assert ledger.discard("cats", [2]) == []
    assert event_names(ledger, after) == ["drafted", "finishing", "drafted", "discarded", "complete"]
    record = ledger.batch("cats")
    assert (record.done, record.drafted, record.cancelled, record.complete) == (2, 0, 1, True)


def test_pauses_by_the_ledger_itself_are_events(ledger: Ledger) -> None:
    opened(ledger, "canary", 2, canary=1)
    ledger.commit([(each, {}) for each in lease(ledger)])
    opened(ledger, "hopeless", 100, budget=0.1)
    fail(ledger, lease(ledger, 60))
    assert [event.batch for event in ledger.read_events("0-0") if event.event == "paused"] == ["canary", "hopeless"]


def test_workers_that_come_drain_and_go_are_events(ledger: Ledger) -> None:
    ledger.heartbeat("mini", "a", about={"draining": 0})
    ledger.heartbeat("mini", "a", about={"draining": 0})
    assert not ledger.request_drain("b")
    assert ledger.request_drain("a")
    [record] = ledger.worker_records()
    assert record.draining
    assert ledger.heartbeat("mini", "a", about={"draining": 0}).drain
    ledger.heartbeat("mini", "a", about={"draining": 1})
    ledger.heartbeat("mini", "a", about={"draining": 1})
    ledger.sign_off("mini", "a")
    ledger.sign_off("mini", "a")
    assert event_names(ledger) == ["worker_started", "worker_draining", "worker_ended"]
    assert not ledger.heartbeat("mini", "a").drain
    # a worker that was killed: another one finds that it sends nothing any more
    client: Any = ledger.redis
    client.zadd("{lf}:workers:mini", {"a": 1})
    ledger.heartbeat("mini", "c")
    *_, ended, started = ledger.read_events("0-0")
    assert (ended.event, ended.worker, ended.kind) == ("worker_ended", "a", None)
    assert (started.event, started.worker, started.model) == ("worker_started", "c", "mini")


def test_a_reader_waits_for_the_next_event_and_old_events_are_dropped(ledger: Ledger) -> None:
    opened(ledger)
    last, found = ledger.last_event_id(), list[Event]()
    began = time.monotonic()
    assert ledger.read_events(last, block_s=0.05) == []
    assert 0.04 < time.monotonic() - began < 2
    reader = Thread(target=lambda: found.extend(ledger.read_events(last, block_s=5)))
    reader.start()
    until(lambda: ledger.redis.info("clients")["blocked_clients"] > 0)
    ledger.cancel("cats")
    reader.join()
    assert [event.event for event in found] == ["cancelled"]
    pipe = ledger.redis.pipeline(transaction=False)
    for _ in range(10_200):
        pipe.xadd(STREAM, {"event": "open", "batch": "b", "model": "m", "account": "submitted/"})
    pipe.execute()
    ledger.heartbeat("mini", "a")
    client: Any = ledger.redis
    assert 10_000 <= client.xlen(STREAM) < 10_200
    assert len(ledger.read_events("0-0", limit=20_000)) == client.xlen(STREAM)


def test_a_user_without_permission_for_events_and_signals_changes_batches_all_the_same(ledger: Ledger) -> None:
    client: Any = ledger.redis
    client.execute_command("ACL", "SETUSER", "default", "-xadd", "-publish")
    try:
        opened(ledger, **INTERACTIVE)
        ledger.commit([(each, {}) for each in lease(ledger, 5)])
    finally:
        client.execute_command("ACL", "SETUSER", "default", "+@all")
    assert ledger.batch("cats").complete
    assert ledger.last_event_id() == "0-0"


def test_workers_hear_of_a_batch_that_is_paused_at_once_and_of_one_that_preempts_others(ledger: Ledger) -> None:
    with ledger.signals() as signals:
        assert signals.wait(0.01) is None
        opened(ledger, "many", 100)
        opened(ledger, "now", 2, preempt=True)
        assert signals.wait(5) == WorkerSignal("urgent", "mini")
        ledger.pause("many", PausedBy.USER, "lunch")
        # the pause stays as it is, but its images are to be parked after all
        ledger.pause("many", PausedBy.USER, now=True)
        assert signals.wait(5) == WorkerSignal("paused", "many")
        assert ledger.batch("many").paused == "lunch"
        ledger.cancel("many")
        ledger.pause("many", PausedBy.USER, now=True)
        assert [signals.wait(5), signals.wait(0.01)] == [WorkerSignal("cancelled", "many"), None]
    first = ledger.lease("mini", "w", 3, lease_s=30, urgent=True, request="r1")
    assert [(each.urgent, each.interactive, each.checkpoint) for each in first] == [(True, False, 0)] * 2
    assert ledger.park(first[:1]) == 1
    [parked] = ledger.lease("mini", "w", 3, lease_s=30, urgent=True, request="r2")
    assert (parked.checkpoint, parked.finish) == (first[0].epoch, False)
    draft_all(ledger, [parked])
    assert ledger.finish("now", [parked.index]) == 1
    [finishing] = ledger.lease("mini", "w", 3, lease_s=30, request="r3")
    # the reply was lost
    [again] = ledger.lease("mini", "w", 3, lease_s=30, request="r3")
    for each in (finishing, again):
        assert (each.urgent, each.checkpoint, each.finish) == (True, parked.epoch, True)


def test_an_interactive_job_is_leased_first_and_signalled_when_it_waits(ledger: Ledger) -> None:
    opened(ledger, "many", 100)
    with ledger.signals() as signals:
        assert signals.wait(0.01) is None
        opened(ledger, "now", 2, **INTERACTIVE)
        assert signals.wait(5) == WorkerSignal("urgent", "mini")
        assert [each.batch for each in ledger.lease("mini", "w", 5, lease_s=30, urgent=True)] == [
            "now",
            "now",
        ]
        assert ledger.lease("mini", "w", 5, lease_s=30, urgent=True) == []
        # its worker died, and later its user retries it
        assert expire(ledger) == 2
        assert signals.wait(5) == WorkerSignal("urgent", "mini")
        found = ledger.lease("mini", "w", 3, lease_s=30, request="r1")
        assert [(each.batch, each.interactive) for each in found] == [("now", True), ("now", True), ("many", False)]
        # the reply was lost
        assert [each.interactive for each in ledger.lease("mini", "w", 3, lease_s=30, request="r1")] == [
            True,
            True,
            False,
        ]
    assert ledger.unfinished_by_owner() == {(BatchKind.INTERACTIVE, "alice"): 2}


def test_interactive_batches_are_listed_apart(ledger: Ledger) -> None:
    opened(ledger, "first", 1, kind=BatchKind.INTERACTIVE)
    opened(ledger, "second")
    opened(ledger, "third", 1, kind=BatchKind.INTERACTIVE)
    assert (ledger.batches(), ledger.count_interactive()) == (["second"], 2)
    assert [name for _, name in ledger.newest_batches()] == ["second"]
    assert ledger.batches(interactive=True) == ["first", "second", "third"]
    found = ledger.batch_summaries(["third", "none", "second"])
    assert [(each.name, each.kind) for each in found] == [("third", "interactive"), ("second", "submitted")]
    for name in ("first", "second", "third"):
        assert ledger.redis.exists("{lf}:schema")
        ledger.mark_deleting(name)
        ledger.delete_batch(name)
    assert [key for key in keys_left(ledger) if "last_sweep" not in key] == []


def test_live_reports_reach_every_subscriber(ledger: Ledger) -> None:
    reports = [LiveReport("cats/1", 3, 20), LiveReport("cats/2", 10, 20, "batches/cats/previews/x.png", 1)]
    with ledger.live_reports() as one, ledger.live_reports() as other:
        assert (one.wait(0.01), other.wait(0.01)) == ([], [])
        ledger.publish_live([])
        ledger.publish_live(reports)
        # of a later version, or no report at all
        ledger.redis.publish("{lf}:live", b'{"job": "cats/1"}')
        ledger.redis.publish("{lf}:live", b"\xff")
        ledger.publish_live(reports[:1])
        for subscriber in (one, other):
            found: list[LiveReport] = []
            while len(found) < 3 and (more := subscriber.wait(5)):
                found += more
            assert found == [*reports, reports[0]]


def test_a_worker_hears_that_it_is_watched_and_no_other_does(ledger: Ledger) -> None:
    with ledger.signals(worker="w1") as one, ledger.signals(worker="w2") as other, ledger.signals() as none:
        assert [signals.wait(0.01) for signals in (one, other, none)] == [None, None, None]
        ledger.watch_workers([])
        ledger.watch_workers(["w1", "w3"])
        assert one.wait(5) == WorkerSignal("watched", "w1")
        ledger.create_batch("cats", digest="d", model="mini")
        ledger.cancel("cats")
        # in order: nothing came before
        assert [signals.wait(5) for signals in (one, other, none)] == [WorkerSignal("cancelled", "cats")] * 3


def test_slots_reach_those_who_follow_their_worker(ledger: Ledger) -> None:
    one, other = (SlotsReport(worker, (Slot("cats/1", 3, 20, "aGk="),)) for worker in ("w1", "w2"))
    with ledger.slot_reports(["w1"]) as first, ledger.slot_reports(["w1", "w2"]) as both:
        assert (first.wait(0.01), both.wait(0.01)) == (None, None)
        for report in (other, one, SlotsReport("w3", ())):
            ledger.publish_slots(report)
        assert first.wait(5) == one
        assert [both.wait(5) for _ in range(2)] == [other, one]
        # of a later version
        ledger.redis.publish("{lf}:slots:w1", b'{"slots": 1}')
        assert first.wait(5) is None
        ledger.publish_slots(one)
        assert first.wait(5) == one
    assert keys_left(ledger) == []


def test_a_deletion_is_continued_only_if_its_process_does_not_claim_it_in_time(ledger: Ledger) -> None:
    client: Any = ledger.redis
    for name in ("cats", "dogs", "cows"):
        opened(ledger, name)
        ledger.mark_deleting(name)
    assert ledger.claim_deletion() is None
    client.zadd("{lf}:deletions", {"cats": 1, "dogs": 2})
    # the process of the one lives
    assert ledger.claim_deletion("cats") == "cats"
    assert [ledger.claim_deletion() for _ in range(2)] == ["dogs", None]
    # a process that ends in time hands its deletion over
    assert ledger.claim_deletion("dogs", hold_s=0) == "dogs"
    assert ledger.claim_deletion() == "dogs"
    # a recovery, or the end of the deletion
    Restoration(ledger, "cats").begin(total=1, fields={"digest": "d", "model": "mini"})
    ledger.delete_batch("dogs")
    client.zadd("{lf}:deletions", {"cats": 1}, xx=True)
    assert [ledger.claim_deletion(name) for name in ("", "cats", "dogs", "none")] == [None] * 4
    assert client.zrange("{lf}:deletions", 0, -1) == [b"cows"]


def test_a_batch_expires_once_it_was_kept_for_its_time(ledger: Ledger) -> None:
    client: Any = ledger.redis
    opened(ledger, "kept")
    opened(ledger, "short", keep_s=3600)
    opened(ledger, "long", keep_s=7200)
    assert ledger.claim_expired() is None
    due = dict(client.zrange("{lf}:expiring", 0, -1, withscores=True))
    assert due[b"long"] - due[b"short"] == pytest.approx(3_600_000, abs=5_000)
    client.zadd("{lf}:expiring", {"long": 2, "short": 1})
    assert [ledger.claim_expired() for _ in range(3)] == ["short", "long", None]
    ledger.mark_deleting("short")
    ledger.delete_batch("short")
    assert [name for name, _ in client.zrange("{lf}:expiring", 0, -1, withscores=True)] == [b"long"]


def test_a_submission_is_claimed_by_one_server_at_a_time(ledger: Ledger) -> None:
    assert ledger.queue_submission("a")
    assert not ledger.queue_submission("a")
    assert ledger.queue_submission("b")
    assert ledger.has_submission("a")
    claimed = ledger.claim_submission(30)
    assert claimed is not None
    batch, claim = claimed
    assert batch == "a"
    assert (ledger.claim_submission(0.001) or ("", 0))[0] == "b"
    assert ledger.extend_submission(batch, claim, 30)
    # the other server is late, and its submission is claimed again
    again = None
    while again is None:
        again = ledger.claim_submission(30)
    assert again[0] == "b"
    assert ledger.claim_submission(30) is None
    assert not ledger.extend_submission("b", claim, 30)
    assert not ledger.resolve_submission("b", claim)
    assert ledger.resolve_submission(*again)
    assert not ledger.has_submission("b")
    # a batch that is deleted is not submitted
    ledger.delete_batch("a")
    assert not ledger.extend_submission(batch, claim, 30)
    assert not ledger.has_submission("a")


def test_events_and_signals_of_a_redis_that_is_unavailable_are_an_outage() -> None:
    ledger = Ledger.connect("redis://127.0.0.1:1")
    with ledger.live_reports() as reports, ledger.slot_reports(["w1"]) as slots:
        calls = (
            ledger.last_event_id,
            lambda: ledger.read_events("0-0"),
            lambda: reports.wait(0.1),
            lambda: slots.wait(0.1),
            lambda: ledger.watch_workers(["w1"]),
            lambda: ledger.publish_slots(SlotsReport("w1", ())),
        )
        for call in calls:
            with pytest.raises(UnavailableError):
                call()
