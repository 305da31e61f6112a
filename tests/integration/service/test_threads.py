"""Unexpected exceptions at every call that leaves a worker's process: no job is lost, charged without cause or held.

The worker is a real one, with its threads, in the test's process. Each of its calls to Redis, the bucket, the model and
the encoder can raise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import cycle, islice, product
from threading import Thread
from typing import Any

import pytest
import redis
from tests.conftest import empty, until
from tests.support.raising_worker import Fault, Subject, serving
from tests.support.rendering import SMALL
from tests.support.scraping import http_get, samples_of
from tests.support.tiny import make_tiny

from latentfarm import Batch, Farm
from latentfarm.batch_kind import BatchKind
from latentfarm.doorbell import queue_name
from latentfarm.image_formats import PNG
from latentfarm.ledger import INTERACTIVE_PRIORITY, Lease
from latentfarm.settings import Settings
from latentfarm.storage.bucket import MissingObjectError
from latentfarm.storage.keys import image_key, manifest_key, parse_image_key
from latentfarm.submission.request import SubmitOptions

pytestmark = [pytest.mark.integration, pytest.mark.slow]

KINDS: list[Exception] = [
    RuntimeError("unexpected"),
    redis.ResponseError("ERR an unknown kind"),
    KeyError("missing"),
    MemoryError(),
]
#: calls that are a job's own: if they fail, that job may be charged
OWN = [
    "encoder.encode",
    "encoder.provenance",
    "family.noise_schedule",
    "family.row_conditioning",
    "family.tokenize",
]
#: those in which the device works: after a second error of these in a row, the device is at fault
DEVICE = [
    "family.combine",
    "family.decode",
    "family.encode",
    "family.predict",
]
#: all others; a second word is a part of the object's key
COMMON = [
    "bucket.get /manifest/",
    "bucket.put /images/",
    "bucket.put /intermediates/",
    "bucket.put /results/",
    "signals.wait",
    "doorbell.ring",
    "ledger.batch",
    "ledger.claim_expired",
    "ledger.claim_full_part",
    "ledger.claim_orphans",
    "ledger.commit",
    "ledger.drop_flushed",
    "ledger.expire_leases",
    "ledger.fail",
    "ledger.heartbeat",
    "ledger.lease",
    "ledger.pending_jobs",
    "ledger.renew",
    "ledger.snapshot",
    "webhooks.deliver_due",
]
#: of a batch that lost a lease
ORPHANS = ["bucket.delete", "bucket.keys", "ledger.now_us", "ledger.resolve_orphans"]
#: those of a release
RELEASE = ["ledger.release", "ledger.count_pending"]
#: those about an image for which a client waits
REPORTS = ["ledger.publish_live", "bucket.put /previews/"]
#: a new subscription sends nothing yet, and a plan that is known needs no schedule
OTHER = [*RELEASE, "ledger.signals", "family.combine", "family.noise_schedule"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def worker(servers: Settings, connected: Farm, tiny: str) -> Iterator[Subject]:
    empty(connected)
    # so that every sweep rings
    connected.submit([{"prompt": "p"}], batch="unserved", model="unserved")
    # an embedding on disk is not encoded again
    with serving(servers, model_source=tiny, embedding_cache_bytes=0) as subject:
        yield subject


@pytest.fixture
def subject(worker: Subject) -> Iterator[Subject]:
    yield worker
    worker.faults.disarm()


def lose_a_lease(subject: Subject, batch: Batch) -> None:
    """Let another worker store an image of the batch's first job, and die before its commit."""
    [lease] = subject.farm.ledger.lease("mini", "worker-b", 1, lease_s=0.001)
    key = image_key(batch.name, lease.index, lease.epoch, PNG)
    subject.farm.bucket.put(key, b"an orphan")
    until(lambda: batch.status().leased == 0, timeout_s=60)


def let_maintenance_retry(subject: Subject) -> None:
    """Let postponed parts and claimed batches be due."""
    client: Any = subject.farm.ledger.redis
    for queue in ("{lf}:flush_queue", "{lf}:orphans"):
        for name in client.zrange(queue, 0, -1):
            client.zadd(queue, {name: 0})


def attempts(batch: Batch) -> list[tuple[str, int]]:
    return [(job.state, job.attempts) for job in batch.jobs()]


def wait_for_answers(subject: Subject, faults: list[Fault]) -> None:
    """Return once each of the calls has raised all of its errors and then succeeded."""
    deadline = time.monotonic() + 60
    while waiting := [fault for fault in faults if not fault.answered.wait(0.1)]:
        assert time.monotonic() < deadline, f"these calls were not repeated: {waiting}"
        let_maintenance_retry(subject)


def test_who_sweeps_rings_for_every_model(subject: Subject) -> None:
    queue = queue_name("unserved")
    subject.farm.ledger.redis.delete(queue)
    until(lambda: subject.farm.ledger.redis.llen(queue) == 1)


def test_calls_that_each_raise_once_charge_no_job(subject: Subject) -> None:
    batch, bad = subject.submit(save_intermediates=True), subject.submit(1, scheduler_options={"no_such_option": 1})
    lose_a_lease(subject, batch)
    faults = [subject.faults.arm(call, islice(cycle(KINDS), n, n + 1)) for n, call in enumerate([*COMMON, *ORPHANS])]
    subject.render(batch, bad)
    wait_for_answers(subject, faults)
    assert attempts(batch) == [("done", 1)] * 3
    assert attempts(bad) == [("failed", 1)]
    subject.require_well()


@pytest.mark.parametrize("call", [*COMMON, *ORPHANS])
def test_a_call_that_raises_three_times_charges_no_job(subject: Subject, call: str) -> None:
    batches = [subject.submit(save_intermediates=True)]
    if call in ORPHANS:
        lose_a_lease(subject, batches[0])
    if call == "ledger.fail":
        batches.append(subject.submit(1, scheduler_options={"no_such_option": 1}))
    before = subject.thread_errors()
    fault = subject.faults.arm(call, islice(cycle(KINDS), 3))
    subject.render(*batches)
    wait_for_answers(subject, [fault])
    # maintenance counts an error when its turn ends, after the call that succeeds
    until(lambda: subject.thread_errors() >= before + 3, timeout_s=10)
    assert attempts(batches[0]) == [("done", 1)] * 3
    if call == "ledger.fail":
        assert attempts(batches[1]) == [("failed", 1)]
    subject.require_well()


@pytest.mark.parametrize(("call", "errors"), [*((call, 1) for call in DEVICE), *product(OWN, [1, 2])])
def test_an_unexpected_exception_of_a_jobs_own_call_charges_no_other_job(
    subject: Subject, call: str, errors: int
) -> None:
    batch = subject.submit()
    fault = subject.faults.arm(call, islice(cycle(KINDS), errors))
    subject.render(batch)
    assert not fault.errors
    assert [job.state for job in batch.jobs()] == ["done"] * 3
    assert sum(job.attempts - 1 for job in batch.jobs()) <= errors
    subject.require_well()


def test_every_call_that_leaves_the_process_is_among_those_that_raise(subject: Subject) -> None:
    subject.faults.calls.clear()
    batch = subject.submit(save_intermediates=True)
    lose_a_lease(subject, batch)
    bad = subject.submit(1, scheduler_options={"no_such_option": 1})
    subject.faults.arm("ledger.renew", [])
    subject.render(batch, bad)
    tested = {call.partition(" ")[0] for call in (*COMMON, *ORPHANS, *OWN, *DEVICE, *OTHER)}
    until(lambda: tested - subject.faults.calls <= set(OTHER), timeout_s=60)
    assert subject.faults.calls <= tested


def test_an_interactive_image_is_made_also_if_its_reports_raise(subject: Subject) -> None:
    before = subject.thread_errors()
    faults = [subject.faults.arm(call, cycle_of(KeyError("no"), 1)) for call in REPORTS]
    options = SubmitOptions(kind=BatchKind.INTERACTIVE, priority=INTERACTIVE_PRIORITY)
    # the worker's own thread renders it
    rows = [{"prompt": "p", **SMALL}]
    batch = subject.farm.submit(rows, batch="interactive-1", options=options, partial_images=1)
    until(lambda: batch.status().complete and not any(fault.errors for fault in faults), timeout_s=60)
    assert attempts(batch) == [("done", 1)]
    assert subject.thread_errors() == before + len(REPORTS)
    subject.require_well()


def test_images_are_made_also_if_a_report_of_slots_raises(subject: Subject) -> None:
    before = subject.thread_errors()
    fault = subject.faults.arm("ledger.publish_slots", cycle_of(KeyError("no"), 1))
    # an idle worker answers, one that renders reports
    subject.farm.ledger.watch_workers(["worker-a"])
    until(lambda: not fault.errors, timeout_s=60)
    batch = subject.submit()
    with subject.farm.ledger.slot_reports(["worker-a"]) as reports:
        assert reports.wait(0) is None
        subject.render(batch)
        assert reports.wait(10) is not None
    assert attempts(batch) == [("done", 1)] * 3
    assert subject.thread_errors() == before + 1
    subject.require_well()


def test_every_thread_is_counted_from_the_start(subject: Subject) -> None:
    names = {
        "commit",
        "deadline",
        "drain",
        "engine",
        "heartbeat",
        "inputs",
        "leases",
        "live",
        "maintenance",
    }
    names |= {"prefetch", "prefetch-urgent", "preview", "signals", "slots", "upload", "upload-interactive"}
    names |= {"park", "urgent", "watchdog", "webhooks"}
    assert set(subject.worker.threads.names()) == names
    counted = {key[2] for key in samples_of(subject.worker._metrics.registry) if "thread_errors_total" in key[0]}
    assert counted == set(subject.worker.threads.names())


# -- errors that stay --------------------------------------------------------------------------------------------


def test_of_several_images_one_that_cannot_be_committed_is_charged_alone(subject: Subject) -> None:
    batch = subject.submit()
    first: list[int] = []

    def has_first_image(finished: list[tuple[Lease, Any]]) -> bool:
        epochs = [lease.epoch for lease, _ in finished if lease.name == f"{batch.name}/1"]
        first.extend(epochs[: 1 - len(first)])
        return epochs[:1] == first[:1] and bool(first)

    subject.faults.arm("ledger.commit", cycle_of(ValueError("not JSON"), 1_000), has_first_image)
    subject.render(batch)
    assert attempts(batch) == [("done", 1), ("done", 2), ("done", 1)]
    subject.require_well()


def is_of_second_job(key: str) -> bool:
    found = parse_image_key(key)
    return found is not None and found[0] == 1


def test_an_image_that_cannot_be_stored_is_rendered_again_and_no_other(subject: Subject) -> None:
    batch = subject.submit()
    fault = subject.faults.arm("bucket.put /images/", cycle_of(ValueError("a bad header"), 4), is_of_second_job)
    subject.render(batch)
    assert not fault.errors
    assert attempts(batch) == [("done", 1), ("done", 2), ("done", 1)]
    subject.require_well()


def test_a_failure_that_cannot_be_recorded_releases_the_job_uncharged(subject: Subject) -> None:
    bad = subject.submit(1, scheduler_options={"no_such_option": 1})
    fault = subject.faults.arm("ledger.fail", cycle_of(RuntimeError("no"), 4))
    subject.render(bad)
    assert not fault.errors
    assert attempts(bad) == [("failed", 1)]
    subject.require_well()


def test_a_job_that_cannot_be_prepared_fails_alone_with_its_own_message(subject: Subject) -> None:
    batch = subject.submit()
    subject.faults.arm(
        "family.tokenize", cycle_of(OverflowError("too\x1b[31m big \ud800"), 9), lambda text: text.endswith(" 1")
    )
    subject.render(batch)
    assert attempts(batch) == [("done", 1), ("failed", 3), ("done", 1)]
    error = list(batch.jobs())[1].error
    assert error is not None
    assert error["code"] == "prepare_error"
    # what a terminal, Redis or JSON would not take is replaced
    assert error["message"] == "OverflowError: too [31m big \\ud800"
    subject.require_well()


def test_a_job_waits_for_its_manifest_and_no_other_job_waits_for_it(subject: Subject) -> None:
    late, batch = subject.submit(1), subject.submit(2)
    subject.faults.arm(
        "bucket.get /manifest/", cycle_of(MissingObjectError("404"), 1_000), lambda key: late.name in key
    )
    thread = Thread(target=subject.render, args=(late, batch))
    thread.start()
    until(lambda: batch.status().complete, timeout_s=60)
    assert (late.status().leased, late.status().failed) == (1, 0)
    subject.faults.disarm()
    thread.join(60)
    assert attempts(late) == [("done", 1)]
    assert attempts(batch) == [("done", 1)] * 2
    subject.require_well()


def test_a_job_fails_whose_manifest_stays_away(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject.worker.render_loop._supply.ahead, "_patience_s", 0.3)
    batch = subject.submit(3)
    key = manifest_key(batch.name, 0)
    subject.farm.bucket.put(key, subject.farm.bucket.get(key)[:-20])
    subject.render(batch)
    status = batch.status()
    assert (status.failed, status.errors) == (3, {"manifest_unreadable": 3})
    subject.require_well()


def test_a_worker_whose_leases_cannot_be_renewed_is_not_ready_and_names_the_thread(subject: Subject) -> None:
    assert subject.worker._metrics_server is not None
    address = f"127.0.0.1:{subject.worker._metrics_server.port}"
    assert http_get(address, "/readyz") == (200, "ok\n")
    batch = subject.submit()
    fault = subject.faults.arm("ledger.renew", cycle_of(KeyError("lease"), 1_000))
    thread = Thread(target=subject.render, args=(batch,))
    thread.start()
    until(lambda: http_get(address, "/readyz") == (503, "the leases thread fails: KeyError: 'lease'\n"), timeout_s=60)
    assert samples_of(subject.worker._metrics.registry)["latentfarm_ready", "mini"] == 0
    fault.errors.clear()
    thread.join(60)
    assert not thread.is_alive()
    subject.require_well()
    assert http_get(address, "/readyz") == (200, "ok\n")
    assert samples_of(subject.worker._metrics.registry)["latentfarm_ready", "mini"] == 1


def test_a_drain_goes_on_after_exceptions_of_its_calls(settings: Settings, tiny: str) -> None:
    # longer than any test: the end of the time would end this process
    with serving(settings, model_source=tiny, shutdown_timeout_s=3600.0) as subject:
        loop = subject.worker.render_loop
        subject.faults.install("loop", loop, inside="latentfarm_worker.service.render_loop")
        faults = [subject.faults.arm(call, KINDS[:1]) for call in ("loop.drain", *RELEASE)]
        batch = subject.submit(6, num_inference_steps=200)
        thread = Thread(target=loop.render_all)
        thread.start()
        until(lambda: batch.status().leased > 2, timeout_s=60)
        subject.worker.shutdown.begin()
        # the jobs whose release failed are not renewed any more
        until(lambda: not any(fault.errors for fault in faults[:2]) and loop.leases_held <= 2, timeout_s=60)
        subject.worker.render_loop.release_all()
        thread.join(60)
        assert not thread.is_alive()
        until(lambda: batch.status().leased == 0, timeout_s=60)
        assert {job.attempts for job in batch.jobs()} == {0}


def cycle_of(error: Exception, times: int) -> list[Exception]:
    return [error] * times
