"""What only reads, answers: at the memory limit, on a replica, without a disk, without permission to write."""

from __future__ import annotations

import json
from threading import Event, Thread

import pytest
from tests.conftest import Command
from tests.support.refusing_redis import CAUSES, RefusingRedis

from latentfarm import Farm
from latentfarm.batch_state import PausedBy
from latentfarm.doorbell import make_app, ring
from latentfarm.errors import UnavailableError
from latentfarm.job_state import JobState
from latentfarm.ledger import Ledger, WorkerSignal
from latentfarm.monitoring.exporter import LedgerCollector
from latentfarm.settings import Settings

pytestmark = pytest.mark.integration

JOBS = 6


@pytest.fixture
def ledger(refusing: RefusingRedis) -> Ledger:
    """A ledger with a batch that has jobs in every state."""
    ledger = Ledger.connect(refusing.url)
    fill(ledger)
    return ledger


def fill(ledger: Ledger, batch: str = "cats") -> None:
    ledger.create_batch(batch, digest="d", model="mini")
    ledger.append_jobs(batch, before=0, total=JOBS, parts_digest="p", closed=True)
    done, failed, *_ = ledger.lease("mini", "worker-a", 3, lease_s=30)
    ledger.commit([(done, {"key": "k"})])
    ledger.fail(failed, {"code": "non_finite", "message": "no"})
    ledger.heartbeat("mini", "worker-a", {"images": 1.0, "wall_s": 1.0}, about={"device": "cpu", "slots": 4})


def check_reads(ledger: Ledger) -> None:
    """Call every method that only reads."""
    assert ledger.batches() == ["cats"]
    assert [summary.leased for summary in ledger.batch_summaries()] == [1]
    record = ledger.batch("cats")
    assert (record.done, record.failed, record.leased, record.pending) == (1, 1, 1, JOBS - 3)
    assert record.errors == {"non_finite": 1}
    states = [JobState.DONE, JobState.FAILED, JobState.LEASED, *[JobState.PENDING] * (JOBS - 3)]
    assert ledger.states("cats", 0, JOBS) == states
    assert ledger.states_version("cats")[0] == JOBS
    assert [job.state for job in ledger.jobs("cats", range(JOBS))] == states
    assert list(ledger.indices("cats", JobState.FAILED)) == [1]
    assert ledger.count_pending("mini") == JOBS - 3
    assert [worker.name for worker in ledger.worker_records()] == ledger.workers("mini") == ["worker-a"]
    [model] = ledger.model_records()
    assert (model.name, model.pending, [*model.workers]) == ("mini", JOBS - 3, ledger.worker_records("mini"))
    assert ledger.throughput("mini") is not None
    assert ledger.memory_bytes() > 0
    assert [event.event for event in ledger.read_events("0-0", limit=2)] == ["created", "open"]
    assert ledger.last_event_id() > "0-0"
    assert [name for _, name in ledger.newest_batches()] == ["cats"]
    assert (ledger.unfinished_by_owner(), ledger.count_interactive()) == ({}, 0)
    [up] = [each for each in LedgerCollector(ledger).collect() if each.name == "latentfarm_ledger_up"]
    assert up.samples[0].value == 1


@pytest.mark.parametrize("cause", CAUSES)
def test_reads_answer_while_redis_refuses_writes(cause: str, refusing: RefusingRedis, ledger: Ledger) -> None:
    with refusing.refusing(cause):
        check_reads(ledger)
        # an idle connection is checked first, with a command that some of them refuse
        for connection in ledger.redis.connection_pool._available_connections:
            connection.next_health_check = 0.1
        check_reads(ledger)
        with pytest.raises(UnavailableError) as caught:
            ledger.heartbeat("mini", "worker-b")
        assert caught.value.cause == cause
    ledger.heartbeat("mini", "worker-b")


@pytest.mark.parametrize("cause", CAUSES)
def test_a_doorbell_that_redis_refuses_is_an_outage_with_its_cause(cause: str, refusing: RefusingRedis) -> None:
    app = make_app(refusing.url, model="mini")
    client = Ledger.connect(refusing.url).redis
    with refusing.refusing(cause), pytest.raises(UnavailableError) as caught:
        ring(client, app, "mini", 4)
    assert caught.value.cause == cause
    assert "the queue of model 'mini' does not accept messages" in str(caught.value)
    assert ring(client, app, "mini", 4) == 1


def test_a_user_who_may_only_read_can_read_everything(refusing: RefusingRedis, ledger: Ledger) -> None:
    assert ledger.ping()
    viewer = Ledger.connect(refusing.viewer_url)
    check_reads(viewer)
    with pytest.raises(UnavailableError) as caught:
        viewer.pause("cats", PausedBy.USER, "")
    assert caught.value.cause == "NOPERM"
    assert "redis-acl.txt" in str(caught.value)


#: a worker counts as alive for 15 s after its heartbeat, so `workers` comes first
READING = (
    ("workers", "--json"),
    ("status",),
    ("status", "rows", "--json"),
    ("jobs", "rows"),
    ("job", "rows/1", "--json"),
)


@pytest.mark.parametrize("cause", [*CAUSES, "viewer"])
def test_the_commands_that_read_answer_and_the_others_name_the_cause(
    cause: str, refusing: RefusingRedis, settings: Settings, latentfarm: Command
) -> None:
    fill(Ledger.connect(refusing.url))
    settings = settings.model_copy(update={"redis_url": refusing.url})
    Farm.open(settings).submit([{"prompt": "p"}] * 2, batch="rows")
    if cause == "viewer":
        settings = settings.model_copy(update={"redis_url": refusing.viewer_url})
    with refusing.refusing("NOPERM" if cause == "viewer" else cause):
        for command in READING:
            ran = latentfarm(*command, settings=settings)
            assert (ran.returncode, ran.stderr) == (0, ""), command
            assert "rows" in ran.stdout or "worker-a" in ran.stdout
        ran = latentfarm("pause", "cats", settings=settings)
    assert ran.returncode == 3
    [line] = ran.stderr.splitlines()
    assert "cannot be used now: " in line


def test_watch_shows_progress_while_redis_refuses_writes(
    refusing: RefusingRedis, ledger: Ledger, settings: Settings, latentfarm: Command
) -> None:
    ledger.cancel("cats")
    settings = settings.model_copy(update={"redis_url": refusing.url})
    with refusing.out_of_memory():
        ran = latentfarm("watch", "cats", "--json", settings=settings)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["state"] == "cancelled"


def test_a_connection_leaves_a_server_that_has_become_a_replica(refusing: RefusingRedis, ledger: Ledger) -> None:
    """After a failover the same name leads to the new primary, which an open connection would not find."""
    with refusing.replica():
        with pytest.raises(UnavailableError):
            ledger.heartbeat("mini", "worker-b")
        [connection] = ledger.redis.connection_pool._available_connections
        held = connection._sock
        assert ledger.ping()
        assert connection._sock is not held


def test_the_records_of_jobs_that_change_meanwhile_are_of_one_moment(refusing: RefusingRedis, ledger: Ledger) -> None:
    ledger.create_batch("dogs", digest="d", model="dogs")
    total = 300
    ledger.append_jobs("dogs", before=0, total=total, parts_digest="p", closed=True)
    stop = Event()

    def render() -> None:
        worker = Ledger.connect(refusing.url)
        while not stop.is_set() and (leases := worker.lease("dogs", "w", 3, lease_s=30)):
            worker.commit([(leases[0], {"key": "k"})])
            worker.release(leases[1:])

    thread = Thread(target=render)
    thread.start()
    read = 0
    while thread.is_alive():
        snapshot = ledger.snapshot("dogs", range(total))
        read += 1
        for job in snapshot.jobs:
            leased, done = job.state is JobState.LEASED, job.state is JobState.DONE
            assert (job.worker is not None, job.receipt is not None) == (leased, done), job
    stop.set()
    thread.join()
    assert read > 10


def test_the_pending_jobs_counted_by_reading_are_those_that_a_heartbeat_reports(ledger: Ledger) -> None:
    def both() -> tuple[int, int]:
        return ledger.count_pending("mini"), ledger.heartbeat("mini", "worker-a").pending

    def equal(expected: int) -> bool:
        return both() == (expected, expected)

    assert equal(JOBS - 3)
    ledger.create_batch("canary", digest="d", model="mini", canary=2)
    ledger.append_jobs("canary", before=0, total=5, parts_digest="p", closed=True)
    assert equal(JOBS - 3 + 2)
    leases = [lease for lease in ledger.lease("mini", "worker-a", 9, lease_s=30) if lease.batch == "canary"]
    ledger.release(leases[:1])
    counted, reported = both()
    assert counted == reported
    for change in (
        lambda: ledger.pause("cats", PausedBy.USER, ""),
        lambda: ledger.resume("canary"),
        lambda: ledger.fail(leases[1], {"code": "x", "message": ""}, retry=True),
        lambda: ledger.resume("cats"),
        lambda: ledger.cancel("canary"),
    ):
        change()
        counted, reported = both()
        assert counted == reported


def test_a_subscription_that_was_refused_is_made_once_it_is_allowed(refusing: RefusingRedis, ledger: Ledger) -> None:
    client = refusing.client
    with ledger.signals() as signals:
        client.execute_command("ACL", "SETUSER", "default", "-subscribe")
        try:
            with pytest.raises(UnavailableError) as caught:
                # the first call may return before the refusal has arrived
                all(signals.wait(1) is None for _ in range(5))
        finally:
            client.execute_command("ACL", "SETUSER", "default", "+@all")
        assert caught.value.cause == "NOPERM"
        assert signals.wait(0.1) is None
        ledger.cancel("cats")
        assert signals.wait(5) == WorkerSignal("cancelled", "cats")
