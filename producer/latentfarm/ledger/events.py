"""Events: each change of a batch or a worker, in the order of the changes.

The stream keeps about 10,000 of them. They are notices: the state itself is in the records of batches and workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentfarm.batch_kind import BatchKind
from latentfarm.ledger.client import LedgerClient
from latentfarm.ledger.records import decode, split_account
from latentfarm.ledger.redis_errors import translate_errors

STREAM = "{lf}:events"
#: seconds that one call waits at most: fewer than the time-out of a connection
_MAX_BLOCK_S = 5.0
_NO_EVENT = "0-0"


@dataclass(frozen=True)
class Event:
    """A change.

    ``id`` is ``<milliseconds of Redis TIME>-<number>`` and only rises. ``event`` is what happened to a batch: created,
    open, paused, resumed, cancelled, complete, drafted (every job has ended, some as drafts), retried, finishing (some
    of its drafts are to be finished), discarded (some are discarded), priority or deleted; or to a worker:
    worker_started, worker_draining or worker_ended. Fields that do not apply are empty; ``kind`` is None then.
    """

    id: str
    event: str
    batch: str = ""
    model: str = ""
    kind: BatchKind | None = None
    owner: str = ""
    worker: str = ""


def event_order(event_id: str) -> tuple[int, int]:
    """Return what sorts the ids of events by time; an empty id comes before all."""
    milliseconds, _, number = (event_id or _NO_EVENT).partition("-")
    return int(milliseconds), int(number)


class Events(LedgerClient):
    """The stream of events."""

    def read_events(self, after: str, *, block_s: float = 0, limit: int = 1000) -> list[Event]:
        """Return up to ``limit`` events after an id, oldest first.

        Args:
            after: id of an event, or of ``last_event_id``. If it is not in the stream any more, the events begin with
                the oldest that is.
            block_s: seconds to wait for the first if there is none yet, at most 5.
            limit: how many events.
        """
        block_ms = max(1, int(min(block_s, _MAX_BLOCK_S) * 1000)) if block_s > 0 else None
        with translate_errors(self.where):
            found: Any = self.redis.xread({STREAM: after}, count=limit, block=block_ms)
        return [_event(decode(key), fields) for _, entries in found or () for key, fields in entries]

    def last_event_id(self) -> str:
        """Return the id of the latest event, ``0-0`` if there is none."""
        with translate_errors(self.where):
            found: Any = self.redis.xrevrange(STREAM, count=1)
        return decode(found[0][0]) if found else _NO_EVENT


def _event(key: str, fields: Mapping[bytes, bytes]) -> Event:
    facts = {decode(name): decode(value) for name, value in fields.items()}
    kind, owner = split_account(facts["account"]) if "account" in facts else (None, "")
    return Event(
        id=key,
        event=facts["event"],
        batch=facts.get("batch", ""),
        model=facts.get("model", ""),
        kind=kind,
        owner=owner,
        worker=facts.get("worker", ""),
    )
