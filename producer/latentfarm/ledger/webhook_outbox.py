"""The queue of webhooks: each is claimed by one sender at a time, and sent at least once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from latentfarm.batch_state import BatchState
from latentfarm.ledger.ledger import Ledger
from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import translate_errors

#: milliseconds until a batch is checked again whose results are not in the bucket yet
_FLUSH_WAIT_MS = 2_000


@dataclass(frozen=True)
class Event:
    """The end of a batch, claimed for one attempt to send its webhook. Attempts count from 1.

    ``state`` is DRAFTED while all jobs that have neither ended as images nor failed are drafts.
    ``ended_ms`` and ``claimed_ms`` are milliseconds of Redis ``TIME``: the sender's clock is not trusted. A batch can
    end more than once; ``ended_ms`` and ``retries`` together identify one end.
    """

    batch: str
    #: may contain a token, so it is kept out of logs
    url: str = field(repr=False)
    attempt: int
    state: BatchState
    ended_ms: int
    retries: int
    model: str
    total: int
    done: int
    failed: int
    cancelled: int
    #: failed jobs by error code
    errors: dict[str, int]
    claimed_ms: int = 0
    drafted: int = 0


class WebhookOutbox:
    """The batches whose webhook is to be sent. Methods raise ``UnavailableError`` if Redis is unavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def claim(self, limit: int, *, hold_s: float) -> list[Event]:
        """Claim up to ``limit`` events that are due; no other sender gets them for ``hold_s`` seconds.

        No event is due before every result of its batch is in the bucket.
        """
        found = self._ledger.run(self._ledger.scripts.webhook_claim, limit, int(hold_s * 1000), _FLUSH_WAIT_MS)
        return [_event(facts) for facts in found]

    def sent(self, event: Event) -> bool:
        """Record a delivery; return False if the event is out of date."""
        return self._resolve(event, "sent")

    def retry(self, event: Event, error: str, *, delay_s: float) -> bool:
        """Record a failed attempt; the next one is due after ``delay_s`` seconds."""
        return self._resolve(event, "retry", error, delay_s)

    def abandon(self, event: Event, error: str) -> bool:
        """Record that the event will never be sent."""
        return self._resolve(event, "failed", error)

    def last_error(self, batch: str) -> str:
        """Return why the last attempt for a batch failed; empty if none failed."""
        with translate_errors(self._ledger.where):
            found: Any = self._ledger.redis.hget(f"{{lf}}:batch:{batch}", "webhook_error")
        return decode(found or "")

    def _resolve(
        self, event: Event, outcome: Literal["sent", "retry", "failed"], error: str = "", delay_s: float = 0
    ) -> bool:
        args = (event.batch, event.ended_ms, event.retries, event.attempt, outcome, error, int(delay_s * 1000))
        return bool(self._ledger.run(self._ledger.scripts.webhook_resolve, *args))


def _event(facts: list[Any]) -> Event:
    batch, url, attempt, state, ended_ms, retries, model, *counters, codes, claimed_ms = facts
    total, done, failed, cancelled, drafted = map(int, counters)
    return Event(
        batch=decode(batch),
        url=decode(url),
        attempt=attempt,
        state=BatchState(decode(state)),
        ended_ms=int(ended_ms),
        retries=int(retries),
        model=decode(model),
        total=total,
        done=done,
        failed=failed,
        cancelled=cancelled,
        drafted=drafted,
        errors={decode(code): int(count) for code, count in zip(codes[::2], codes[1::2], strict=True)},
        claimed_ms=int(claimed_ms),
    )
