"""Every batch in few words: its model and its state, in one round trip, however many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis

from latentfarm.batch_state import CLOSED, BatchState
from latentfarm.ledger.records import decode


@dataclass(frozen=True)
class BatchSummary:
    """A batch's name, model and state: opening, open, complete, cancelled or deleting; ``leased`` jobs run."""

    name: str
    model: str
    state: BatchState
    leased: int

    @property
    def ended(self) -> bool:
        """Whether none of its jobs is to be rendered."""
        return self.state in CLOSED


def read_batch_summaries(client: redis.Redis) -> list[BatchSummary]:
    """Return every batch, oldest first."""
    names = [decode(name) for name in client.zrange("lf:batches", 0, -1)]
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.hmget(f"lf:batch:{name}", ["model", "state", "leased"])
    found: list[list[Any]] = pipe.execute()
    # one that is deleted at this moment has no hash any more
    return [
        BatchSummary(name, decode(model), BatchState(decode(state)), int(leased))
        for name, (model, state, leased) in zip(names, found, strict=True)
        if model is not None
    ]
