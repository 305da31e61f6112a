"""The webhooks that are to be sent, as the ledger keeps them: claimed by one sender at a time, at least once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal

import redis

from latentfarm.errors import UnavailableError


@dataclass(frozen=True)
class Event:
    """The end of a batch, claimed for one attempt to tell it. ``ended_ms`` is Redis ``TIME``; attempts count from 1."""

    batch: str
    #: may hold a token, so it is kept out of logs
    url: str = field(repr=False)
    attempt: int
    state: str
    ended_ms: int
    model: str
    total: int
    done: int
    failed: int
    cancelled: int
    #: failed jobs by error code
    errors: dict[str, int]


class Webhooks:
    """The batches whose end is to be told. Methods raise ``UnavailableError`` when Redis does not answer."""

    def __init__(self, client: redis.Redis, where: str) -> None:
        self.where = where
        self._client = client
        folder = files("latentfarm.ledger")
        common = (folder / "_common.lua").read_text()
        self._take = client.register_script(common + (folder / "webhook_take.lua").read_text())
        self._settle = client.register_script(common + (folder / "webhook_settle.lua").read_text())

    def take(self, limit: int, *, hold_s: float) -> list[Event]:
        """Claim up to ``limit`` events that are due; nobody else gets them for ``hold_s``."""
        with self._reachable():
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
        with self._reachable():
            found: Any = self._client.hget(f"lf:batch:{batch}", "webhook_error")
        return found.decode() if found else ""

    def _record(
        self, event: Event, outcome: Literal["sent", "retry", "failed"], error: str = "", delay_s: float = 0
    ) -> bool:
        args: list[Any] = [event.batch, event.ended_ms, event.attempt, outcome, error, int(delay_s * 1000)]
        with self._reachable():
            return bool(self._settle(args=args))

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError, redis.AuthenticationError) as error:
            raise UnavailableError(f"Redis at {self.where} cannot be used: {error}") from error


def _event(facts: list[Any]) -> Event:
    batch, url, attempt, state, ended_ms, model, total, done, failed, cancelled, codes = facts
    return Event(
        batch=batch.decode(),
        url=url.decode(),
        attempt=attempt,
        state=state.decode(),
        ended_ms=int(ended_ms),
        model=model.decode(),
        total=int(total),
        done=int(done),
        failed=int(failed),
        cancelled=int(cancelled),
        errors={code.decode(): int(count) for code, count in zip(codes[::2], codes[1::2], strict=True)},
    )
