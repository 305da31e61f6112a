"""Deliver the webhooks that are due, by Standard Webhooks (https://www.standardwebhooks.com).

An event is a POST of compact JSON with ``webhook-id`` (the same for every attempt), ``webhook-timestamp`` and
``webhook-signature``.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any

from latentfarm.batch_state import BatchState
from latentfarm.errors import LatentfarmError
from latentfarm.ledger import Ledger
from latentfarm.ledger.webhook_outbox import Event, WebhookOutbox
from latentfarm.settings import Settings
from latentfarm.webhooks.https_post import Answer, post
from latentfarm.webhooks.signing import decode_secret, sign

#: seconds until each further attempt, plus up to a fifth; after the last one the event is abandoned
RETRY_DELAYS_S = (5, 30, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600)

_ATTEMPT_TIMEOUT_S = 15.0
#: longer than any attempt, so that an event is claimed again only if its sender died
_HOLD_S = 60.0
#: events that are sent at the same time
_PARALLEL = 4
_GONE = 410
#: types of events by the state in which a batch has ended
_TYPES = {
    BatchState.COMPLETE: "batch.completed",
    BatchState.CANCELLED: "batch.cancelled",
    BatchState.DRAFTED: "batch.drafted",
}


def deliver_due(ledger: Ledger, settings: Settings, *, attempt_timeout_s: float = _ATTEMPT_TIMEOUT_S) -> int:
    """Send up to four due events in parallel and return the number delivered.

    Takes at most a second longer than one attempt. Failures are recorded in the ledger, not raised.
    """
    outbox = WebhookOutbox(ledger)
    events = outbox.claim(_PARALLEL, hold_s=_HOLD_S)
    if not events:
        return 0
    with ThreadPoolExecutor(len(events), thread_name_prefix="webhook") as pool:
        return sum(pool.map(lambda event: _deliver(outbox, event, settings, attempt_timeout_s), events))


def _deliver(outbox: WebhookOutbox, event: Event, settings: Settings, timeout_s: float) -> bool:
    error, wait_s, gone = "", 0.0, False
    began = time.monotonic()
    try:
        answer = _send(event, settings, timeout_s)
    except (LatentfarmError, OSError, HTTPException) as problem:
        # a connection that is cut at the deadline may raise any of these
        late = time.monotonic() - began >= timeout_s
        error = f"no answer within {timeout_s:g} s" if late else _describe(problem)
    else:
        if 200 <= answer.status < 300:
            return outbox.sent(event)
        error, wait_s, gone = _describe_status(answer.status), answer.retry_after_s, answer.status == _GONE
    if gone or event.attempt > len(RETRY_DELAYS_S):
        outbox.abandon(event, f"{error}; attempt {event.attempt} was the last")
    else:
        # the random part spreads the retries of endpoints that failed together
        delay_s = RETRY_DELAYS_S[event.attempt - 1] * random.uniform(1, 1.2)  # noqa: S311
        outbox.retry(event, error, delay_s=max(delay_s, wait_s))
    return False


def _describe(problem: Exception) -> str:
    if isinstance(problem, HTTPException):
        # its text may be anything that the endpoint sent
        return f"the answer is not HTTP ({type(problem).__name__})"
    return str(problem) or type(problem).__name__


def _describe_status(status: int) -> str:
    if 300 <= status < 400:
        return f"the answer was {status}, and redirects are not followed; give the final URL"
    return f"the answer was {status}"


def _send(event: Event, settings: Settings, timeout_s: float) -> Answer:
    secret = decode_secret(settings.webhook_secret.get_secret_value())
    body, webhook_id, now_s = _body(event), _webhook_id(event), event.claimed_ms // 1000
    headers = {
        "content-type": "application/json",
        "user-agent": "latentfarm",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": sign(secret, webhook_id, now_s, body),
    }
    return post(event.url, body, headers, allow_private=settings.webhook_allow_private, timeout_s=timeout_s)


def _body(event: Event) -> bytes:
    ended = datetime.fromtimestamp(event.ended_ms / 1000, UTC)
    data: dict[str, Any] = {
        "batch": event.batch,
        "model": event.model,
        "state": event.state,
        "total": event.total,
        "done": event.done,
        "failed": event.failed,
        "cancelled": event.cancelled,
        "drafted": event.drafted,
    }
    if event.errors:
        data["errors"] = event.errors
    message = {
        "type": _TYPES[event.state],
        "timestamp": ended.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": data,
    }
    return json.dumps(message, separators=(",", ":")).encode()


def _webhook_id(event: Event) -> str:
    """Return the event's id: the same for all attempts, another one if the batch ends again."""
    return "msg_" + hashlib.sha256(f"{event.batch}/{event.ended_ms}/{event.retries}".encode()).hexdigest()[:32]
