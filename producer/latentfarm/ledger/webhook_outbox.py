"""The webhooks that are to be sent, as the ledger keeps them: claimed by one sender at a time, at least once."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal

import redis

from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import translate_errors


@dataclass(frozen=True)
class Event:
    """The end of a batch, claimed for one attempt to tell it; attempts count from 1.

    ``ended_ms`` is Redis ``TIME``, ``retries`` how often failed jobs of the batch were made to run again before it:
    together they tell one end of a batch from another.
    """

    batch: str
    #: may hold a token, so it is kept out of logs
    url: str = field(repr=False)
    attempt: int
    state: str
    ended_ms: int
    retries: int
    model: str
    total: int
    done: int
    failed: int
    cancelled: int
    #: failed jobs by error code
    errors: dict[str, int]
    #: when this attempt began; the sender's own clock is not trusted
    claimed_ms: int = 0


class WebhookOutbox:
    """The batches whose end is to be told. Methods raise ``UnavailableError`` when Redis does not answer."""

    def __init__(self, client: redis.Redis, where: str) -> None:
        self.where = where
        self._client = client
        folder = files("latentfarm.ledger") / "scripts"
        common = (folder / "_common.lua").read_text()
        self._take = client.register_script(common + (folder / "webhook_claim.lua").read_text())
        self._settle = client.register_script(common + (folder / "webhook_resolve.lua").read_text())

    def take(self, limit: int, *, hold_s: float) -> list[Event]:
        """Claim up to ``limit`` events that are due; nobody else gets them for ``hold_s``."""
        with translate_errors(self.where):
            found: Any = self._take(args=[limit, int(hold_s * 1000)])
        return [_event(facts) for facts in found]

    def sent(self, event: Event) -> bool:
        """Record that the event was delivered; False where that decides nothing any more."""
        return self._record(event, "sent")

    def retry(self, event: Event, error: str, *, delay_s: float) -> bool:
        """Record a failed attempt, the next one being due after ``delay_s``."""
        return self._record(event, "retry", error, delay_s)

    def give_up(self, event: Event, error: str) -> bool:
        """Record that the event will never be delivered."""
        return self._record(event, "failed", error)

    def problem(self, batch: str) -> str:
        """Return why the last attempt to tell a batch's end failed, empty where none did."""
        with translate_errors(self.where):
            found: Any = self._client.hget(f"lf:batch:{batch}", "webhook_error")
        return decode(found or "")

    def _record(
        self, event: Event, outcome: Literal["sent", "retry", "failed"], error: str = "", delay_s: float = 0
    ) -> bool:
        args: list[Any] = [
            event.batch,
            event.ended_ms,
            event.retries,
            event.attempt,
            outcome,
            error,
            int(delay_s * 1000),
        ]
        with translate_errors(self.where):
            return bool(self._settle(args=args))


def _event(facts: list[Any]) -> Event:
    batch, url, attempt, state, ended_ms, retries, model, total, done, failed, cancelled, codes, claimed_ms = facts
    return Event(
        batch=decode(batch),
        url=decode(url),
        attempt=attempt,
        state=decode(state),
        ended_ms=int(ended_ms),
        retries=int(retries),
        model=decode(model),
        total=int(total),
        done=int(done),
        failed=int(failed),
        cancelled=int(cancelled),
        errors={decode(code): int(count) for code, count in zip(codes[::2], codes[1::2], strict=True)},
        claimed_ms=int(claimed_ms),
    )
