"""What the ledger signals to workers at once: cancelled batches, and jobs for which a client waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import redis

from latentfarm.ledger.subscription import Subscription

_CANCELLED, _URGENT = "{lf}:cancelled", "{lf}:urgent"


@dataclass(frozen=True)
class WorkerSignal:
    """A batch that is cancelled, or a model with a new job of an interactive batch."""

    kind: Literal["cancelled", "urgent"]
    #: of the batch, or the alias of the model
    name: str


class WorkerSignals(Subscription):
    """A subscription to signals; a context manager.

    A signal may be missed. Then the worker finds its leases lost at the next renewal, and the job at its next lease.
    """

    def __init__(self, client: redis.Redis, where: str) -> None:
        super().__init__(client, where, (_CANCELLED, _URGENT))

    def wait(self, timeout_s: float) -> WorkerSignal | None:
        """Return the next signal, or None after ``timeout_s`` seconds.

        Raises:
            UnavailableError: Redis is unavailable; the next call subscribes again.
        """
        message = self._message(timeout_s)
        if message is None:
            return None
        channel, content = message
        return WorkerSignal("cancelled" if channel == _CANCELLED else "urgent", content.decode())
