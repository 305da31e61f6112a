"""Webhooks are signed, sent once, retried, abandoned, and taken over from a killed sender."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from pydantic import SecretStr
from tests.support.endpoints import Endpoint, ended, facts, status, verify, work
from tests.support.leasing import draft_all, lease, opened

from latentfarm.ledger import Ledger
from latentfarm.ledger.webhook_outbox import WebhookOutbox
from latentfarm.settings import Settings
from latentfarm.webhooks.deliver import RETRY_DELAYS_S, deliver_due

pytestmark = pytest.mark.integration


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def due_in_s(ledger: Ledger, batch: str = "cats") -> float:
    client: Any = ledger.redis
    seconds, micros = client.time()
    return float(client.zscore("{lf}:webhooks", batch) / 1000 - seconds - micros / 1e6)


def due_now(ledger: Ledger, batch: str = "cats") -> None:
    """Make the next attempt due."""
    client: Any = ledger.redis
    client.zadd("{lf}:webhooks", {batch: 1})


def test_the_end_of_a_batch_is_delivered_signed_and_once(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/hook?token=t")
    assert deliver_due(ledger, worker) == 1
    [(path, headers, body)] = endpoint.received
    assert path == "/hook?token=t"
    assert headers["host"] == f"localhost:{endpoint.port}"
    assert headers["content-type"] == "application/json"
    message = verify(headers, body)
    assert message["type"] == "batch.completed"
    ended_ms = int(ledger.redis.hget("{lf}:batch:cats", "ended_ms") or 0)
    assert datetime.fromisoformat(message["timestamp"]) == EPOCH + timedelta(milliseconds=ended_ms)
    assert message["data"] == {
        "batch": "cats",
        "model": "mini",
        "state": "complete",
        "total": 3,
        "done": 2,
        "failed": 1,
        "cancelled": 0,
        "drafted": 0,
        "errors": {"nan": 1},
    }
    assert facts(ledger) == ("sent", 1, "")
    assert ledger.redis.zcard("{lf}:webhooks") == 0
    assert deliver_due(ledger, worker) == 0
    assert len(endpoint.received) == 1


def test_a_cancelled_batch_has_its_own_event(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/", cancel=True)
    assert deliver_due(ledger, worker) == 1
    message = json.loads(endpoint.received[0][2])
    assert (message["type"], message["data"]["state"]) == ("batch.cancelled", "cancelled")
    assert (message["data"]["cancelled"], "errors" in message["data"]) == (3, False)


def test_a_batch_whose_drafts_wait_has_its_own_event_and_another_one_at_its_end(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    opened(ledger, total=3, webhook=f"https://localhost:{endpoint.port}/")
    draft_all(ledger, lease(ledger, 3))
    assert deliver_due(ledger, worker) == 0, "the results are not in the bucket"
    ledger.drop_flushed("cats", 0, retries=0)
    due_now(ledger)
    assert deliver_due(ledger, worker) == 1
    # an end that is none any more by the time of the attempt is not sent
    ledger.finish("cats", [0])
    draft_all(ledger, lease(ledger, 1))
    ledger.finish("cats", [0])
    due_now(ledger)
    assert deliver_due(ledger, worker) == 0
    ledger.commit([(each, {}) for each in lease(ledger, 1)])
    ledger.discard("cats", [1, 2])
    ledger.drop_flushed("cats", 0, retries=ledger.batch("cats").retries)
    due_now(ledger)
    assert deliver_due(ledger, worker) == 1
    found = [json.loads(body) for _, _, body in endpoint.received]
    assert [each["type"] for each in found] == ["batch.drafted", "batch.completed"]
    counts = [{state: each["data"][state] for state in ("done", "cancelled", "drafted")} for each in found]
    assert counts == [{"done": 0, "cancelled": 0, "drafted": 3}, {"done": 1, "cancelled": 2, "drafted": 0}]


def test_after_a_500_the_event_is_sent_again_with_the_same_id(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    endpoint.replies = [status(500)]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 0
    assert facts(ledger) == ("due", 1, "the answer was 500")
    assert RETRY_DELAYS_S[0] - 1 <= due_in_s(ledger) <= RETRY_DELAYS_S[0] * 1.2
    assert deliver_due(ledger, worker) == 0, "it is not due yet"
    due_now(ledger)
    assert deliver_due(ledger, worker) == 1
    (_, first, body), (_, second, again) = endpoint.received
    assert first["webhook-id"] == second["webhook-id"]
    assert body == again
    assert verify(second, again)
    assert facts(ledger)[:2] == ("sent", 2)


def test_an_event_is_abandoned_after_the_last_delay(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    endpoint.replies = [status(503)] * 20
    ended(ledger, f"https://localhost:{endpoint.port}/")
    for delay_s in RETRY_DELAYS_S:
        assert deliver_due(ledger, worker) == 0
        assert delay_s - 1 <= due_in_s(ledger) <= delay_s * 1.2
        due_now(ledger)
    assert deliver_due(ledger, worker) == 0
    assert len(endpoint.received) == len(RETRY_DELAYS_S) + 1 == 9
    assert facts(ledger) == ("failed", 9, "the answer was 503; attempt 9 was the last")
    assert ledger.redis.zcard("{lf}:webhooks") == 0


def test_an_endpoint_that_answers_410_gets_no_further_attempt(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    endpoint.replies = [status(410)]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 0
    assert facts(ledger) == ("failed", 1, "the answer was 410; attempt 1 was the last")
    assert ledger.redis.zcard("{lf}:webhooks") == 0


def test_an_endpoint_may_request_a_longer_delay(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    endpoint.replies = [status(429, **{"Retry-After": "700"})]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    deliver_due(ledger, worker)
    assert 698 <= due_in_s(ledger) <= 700


def test_two_workers_at_once_deliver_each_event_once(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    for number in range(12):
        ended(ledger, f"https://localhost:{endpoint.port}/", batch=f"b{number}")
    start = threading.Barrier(2)

    def deliver(_: int) -> int:
        mine = Ledger.connect(worker.redis_url)
        start.wait()
        delivered = 0
        while sent := deliver_due(mine, worker):
            delivered += sent
        return delivered

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(deliver, range(2))) == 12
    delivered = [json.loads(body)["data"]["batch"] for _, _, body in endpoint.received]
    assert sorted(delivered) == sorted(f"b{number}" for number in range(12))


def test_the_event_of_a_killed_sender_is_delivered_later(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    reached = threading.Event()

    def stall(_: BaseHTTPRequestHandler) -> None:
        reached.set()
        endpoint.stopped.wait(30)

    endpoint.replies = [stall]
    ended(ledger, f"https://localhost:{endpoint.port}/")
    program = (
        "from latentfarm.ledger import Ledger; from latentfarm.settings import Settings; "
        "from latentfarm.webhooks.deliver import deliver_due; "
        "s = Settings.load(); deliver_due(Ledger.connect(s.redis_url), s)"
    )
    hooks = {
        "LATENTFARM_WEBHOOK_SECRET": worker.webhook_secret.get_secret_value(),
        "LATENTFARM_WEBHOOK_ALLOW_PRIVATE": "true",
    }
    sender = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **worker.environment(), **hooks})
    assert reached.wait(60)
    sender.send_signal(signal.SIGKILL)
    sender.wait()

    assert deliver_due(ledger, worker) == 0, "the killed sender still holds it"
    assert 50 < due_in_s(ledger) <= 60
    due_now(ledger)
    assert deliver_due(ledger, worker) == 1
    first, second = (headers["webhook-id"] for _, headers, _ in endpoint.received)
    assert first == second
    assert facts(ledger)[:2] == ("sent", 2)


def test_without_a_secret_the_attempt_fails_and_is_repeated(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker.model_copy(update={"webhook_secret": SecretStr("")})) == 0
    state, attempts, error = facts(ledger)
    assert (state, attempts) == ("due", 1)
    assert error.startswith("LATENTFARM_WEBHOOK_SECRET is not set; set one on the workers")
    assert endpoint.received == []
    due_now(ledger)
    assert deliver_due(ledger, worker) == 1


def test_a_batch_that_ends_again_has_a_new_event_with_a_new_id(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/")
    deliver_due(ledger, worker)
    assert ledger.retry("cats", [(0, "nan")]) == 1
    work(ledger)
    assert deliver_due(ledger, worker) == 1
    first, second = (headers["webhook-id"] for _, headers, _ in endpoint.received)
    assert first != second
    assert [json.loads(body)["data"]["done"] for _, _, body in endpoint.received] == [2, 3]


def test_a_retry_withdraws_the_event_until_the_batch_ends_again(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/")
    ledger.retry("cats", [(0, "nan")])
    assert deliver_due(ledger, worker) == 0
    assert endpoint.received == []
    assert ledger.batch("cats").webhook == ""
    assert ledger.redis.zcard("{lf}:webhooks") == 0
    work(ledger)
    assert ledger.batch("cats").webhook == "due"
    assert deliver_due(ledger, worker) == 1
    assert ledger.batch("cats").webhook == "sent"


def test_a_deleted_batch_has_no_event_and_leaves_nothing_in_the_ledger(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    ended(ledger, f"https://localhost:{endpoint.port}/")
    ledger.mark_deleting("cats")
    assert deliver_due(ledger, worker) == 0
    # a sender may have scheduled a retry meanwhile
    due_now(ledger)
    assert deliver_due(ledger, worker) == 0
    ledger.delete_batch("cats")
    due_now(ledger)
    assert deliver_due(ledger, worker) == 0
    assert endpoint.received == []
    assert not ledger.redis.exists("{lf}:batch:cats", "{lf}:webhooks")


def test_a_late_attempt_changes_nothing_unless_it_was_delivered(ledger: Ledger) -> None:
    outbox = WebhookOutbox(ledger)
    ended(ledger, "https://x.org/")
    [first] = outbox.claim(5, hold_s=60)
    assert outbox.claim(5, hold_s=60) == []
    due_now(ledger)
    [second] = outbox.claim(5, hold_s=60)
    assert (first.attempt, second.attempt) == (1, 2)
    assert not outbox.retry(first, "late", delay_s=1)
    assert not outbox.abandon(first, "late")
    assert facts(ledger) == ("due", 2, "")
    assert outbox.last_error("cats") == ""
    assert outbox.retry(second, "the answer was 500", delay_s=60)
    assert outbox.last_error("cats") == "the answer was 500"
    assert outbox.sent(first)
    assert outbox.last_error("cats") == ""
    assert not outbox.retry(second, "it was there already", delay_s=1)
    assert facts(ledger)[0] == "sent"


def test_the_outcome_of_an_earlier_end_does_not_change_the_later_one(ledger: Ledger) -> None:
    outbox = WebhookOutbox(ledger)
    ended(ledger, "https://x.org/")
    [first] = outbox.claim(5, hold_s=60)
    ledger.retry("cats", [(0, "nan")])
    work(ledger)
    assert not outbox.sent(first)
    assert facts(ledger) == ("due", 0, "")
    assert [event.done for event in outbox.claim(5, hold_s=60)] == [3]
