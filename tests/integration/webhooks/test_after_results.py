"""A webhook follows the results of its batch: a receiver that reads the bucket finds all of them."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from tests.support.endpoints import Endpoint, facts, status
from tests.support.leasing import fail, flushes_due, lease
from tests.support.s3_front import Answer, front, s3_error

from latentfarm import Batch, Farm, UnavailableError
from latentfarm.ledger import Restoration
from latentfarm.recovery.recover import recover_batch
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.results import flush_due, list_generations, read_part
from latentfarm.submission.request import SubmitOptions
from latentfarm.webhooks.deliver import deliver_due

pytestmark = pytest.mark.integration


class Receiver:
    """Reads the results in the bucket whenever a webhook arrives."""

    def __init__(self, farm: Farm, endpoint: Endpoint) -> None:
        self.farm = farm
        #: of each webhook, the states in the results
        self.found: list[list[str]] = []
        endpoint.replies = [self.reply] * 10
        self.options = SubmitOptions(webhook=f"https://localhost:{endpoint.port}/")

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        bucket = self.farm.bucket
        generations = list_generations(bucket, "cats")
        lines = [line for part, number in generations.items() for line in read_part(bucket, "cats", part, number)]
        self.found.append([line["state"] for line in lines])
        status(204)(handler)


@pytest.fixture
def receiver(farm: Farm, endpoint: Endpoint) -> Receiver:
    return Receiver(farm, endpoint)


@pytest.fixture
def refusals() -> dict[str, Answer]:
    """The methods that the store does not serve."""
    return {"PUT": s3_error("AccessDenied")}


@pytest.fixture
def store(farm: Farm, refusals: dict[str, Answer]) -> Iterator[Bucket]:
    with front(farm.settings, refusals) as fronted:
        yield Bucket.connect(fronted)


def submit(farm: Farm, receiver: Receiver, rows: int = 2) -> Batch:
    return farm.submit(["a"] * rows, batch="cats", options=receiver.options)


def work(farm: Farm, count: int, *, failing: int = 0) -> None:
    leases = lease(farm.ledger, count)
    fail(farm.ledger, leases[:failing])
    for held in leases[failing:]:
        farm.ledger.commit([(held, {"key": "k"})])


def due_now(farm: Farm) -> None:
    """Let the time pass until every webhook and every part is due."""
    flushes_due(farm.ledger)
    client: Any = farm.ledger.redis
    for name in client.zrange("{lf}:webhooks", 0, -1):
        client.zadd("{lf}:webhooks", {name: 1})


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_webhook_waits_for_a_store_that_refuses_the_results(
    farm: Farm, worker: Settings, receiver: Receiver, store: Bucket, refusals: dict[str, Answer], *, cancelled: bool
) -> None:
    batch = submit(farm, receiver)
    work(farm, 1 if cancelled else 2)
    if cancelled:
        # as `cancel` does, but its client dies before it flushes
        farm.ledger.cancel(batch.name)
    for _ in range(3):
        due_now(farm)
        with pytest.raises(UnavailableError):
            flush_due(farm.ledger, store)
        assert deliver_due(farm.ledger, worker) == 0
    assert facts(farm.ledger)[:2] == ("due", 0), "no attempt was counted"
    refusals.clear()
    due_now(farm)
    assert flush_due(farm.ledger, store) == 1
    assert deliver_due(farm.ledger, worker) == 1
    assert receiver.found == [["done", "cancelled" if cancelled else "done"]]
    assert facts(farm.ledger) == ("sent", 1, "")


def test_webhooks_of_other_batches_do_not_wait(farm: Farm, worker: Settings, receiver: Receiver) -> None:
    for name in ("a", "b", "c", "d", "e", "cats"):
        farm.submit(["a"], batch=name, options=receiver.options)
    work(farm, 6)
    client: Any = farm.ledger.redis
    # all but the last wait for the store, and they are more than one call sends
    client.zadd("{lf}:flush_queue", {f"{name}/0": 9e15 for name in "abcde"})
    assert flush_due(farm.ledger, farm.bucket) == 1
    assert deliver_due(farm.ledger, worker) == 1
    assert receiver.found == [["done"]]
    due_now(farm)
    assert flush_due(farm.ledger, farm.bucket) == 5
    assert deliver_due(farm.ledger, worker) + deliver_due(farm.ledger, worker) == 5


def test_the_webhook_after_a_retry_waits_for_the_new_results(farm: Farm, worker: Settings, receiver: Receiver) -> None:
    batch = submit(farm, receiver)
    work(farm, 2, failing=1)
    flush_due(farm.ledger, farm.bucket)
    assert deliver_due(farm.ledger, worker) == 1
    batch.retry()
    work(farm, 1)
    assert deliver_due(farm.ledger, worker) == 0
    flush_due(farm.ledger, farm.bucket)
    due_now(farm)
    assert deliver_due(farm.ledger, worker) == 1
    assert receiver.found == [["failed", "done"], ["done", "done"]]


def test_a_batch_that_was_cancelled_after_a_retry_has_its_results_first(
    farm: Farm, worker: Settings, receiver: Receiver
) -> None:
    batch = submit(farm, receiver, rows=1)
    work(farm, 1, failing=1)
    batch.retry()
    farm.ledger.cancel("cats")
    assert deliver_due(farm.ledger, worker) == 0
    flush_due(farm.ledger, farm.bucket)
    due_now(farm)
    assert deliver_due(farm.ledger, worker) == 1
    assert receiver.found == [["cancelled"]]


def test_a_batch_that_was_cancelled_before_any_job_ended_has_its_webhook_at_once(
    farm: Farm, worker: Settings, receiver: Receiver
) -> None:
    submit(farm, receiver).cancel()
    assert deliver_due(farm.ledger, worker) == 1
    assert receiver.found == [[]]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_webhook_that_is_due_survives_a_recovery(
    farm: Farm, worker: Settings, receiver: Receiver, *, cancelled: bool
) -> None:
    batch = submit(farm, receiver)
    work(farm, 1 if cancelled else 2, failing=2)
    if cancelled:
        batch.cancel()
    fields: dict[str, str | int | float] = {"digest": "d", "model": "mini", "priority": 0, "canary": 0, "budget": 0}
    Restoration(farm.ledger, "cats").begin(total=2, fields=fields)
    assert deliver_due(farm.ledger, worker) == 0
    recover_batch(farm.ledger, farm.bucket, "cats")
    flush_due(farm.ledger, farm.bucket)
    due_now(farm)
    assert deliver_due(farm.ledger, worker) == 1
    assert receiver.found == [["failed", "cancelled" if cancelled else "failed"]]
