"""What is signalled to workers at once: cancelled and paused batches, urgent jobs, and that they are watched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import redis

from latentfarm.ledger.subscription import Subscription

_URGENT = "{lf}:urgent"
#: channels whose messages are names of batches
_BATCHES: dict[str, Literal["cancelled", "paused"]] = {"{lf}:cancelled": "cancelled", "{lf}:paused": "paused"}
#: followed by the worker's name: the others are not woken
_WATCHED = "{lf}:watched:"
#: seconds after which a watched worker is signalled again, and for which one signal holds: two may be missed
WATCH_REPEAT_S, WATCHED_S = 2.0, 6.0


@dataclass(frozen=True)
class WorkerSignal:
    """A batch that is cancelled or paused at once, a model with a new urgent job, or a worker that is watched."""

    kind: Literal["cancelled", "paused", "urgent", "watched"]
    #: of the batch, the alias of the model, or of the worker
    name: str


class WorkerSignals(Subscription):
    """A subscription to signals; a context manager.

    A signal may be missed. Then the worker finds the leases on a cancelled batch lost at the next renewal, renders the
    images of a paused batch to their end, finds the urgent job at its next lease, and that it is watched with the next
    repetition.

    Args:
        worker: also signal that this worker is watched [default: none].
    """

    def __init__(self, client: redis.Redis, where: str, *, worker: str = "") -> None:
        watched = watched_channels([worker] if worker else [])
        super().__init__(client, where, (*_BATCHES, _URGENT, *watched))

    def wait(self, timeout_s: float) -> WorkerSignal | None:
        """Return the next signal, or None after ``timeout_s`` seconds.

        Raises:
            UnavailableError: Redis is unavailable; the next call subscribes again.
        """
        message = self._message(timeout_s)
        if message is None:
            return None
        channel, content = message
        if channel.startswith(_WATCHED):
            return WorkerSignal("watched", channel.removeprefix(_WATCHED))
        return WorkerSignal(_BATCHES.get(channel, "urgent"), content.decode())


def watched_channels(workers: Iterable[str]) -> list[str]:
    """Return the channel of each worker on which it is signalled that it is watched."""
    return [f"{_WATCHED}{worker}" for worker in workers]
