"""Queues of housekeeping: parts to be stored in the bucket, and batches whose orphaned images are to be removed."""

from __future__ import annotations

from latentfarm.ledger.client import LedgerClient
from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import translate_errors

#: if a worker dies while it removes orphans, another one starts after so many seconds
_ORPHANS_HOLD_S = 3600


class FlushQueue(LedgerClient):
    """Parts whose receipts are to be stored in the bucket, and batches that may have orphaned images there."""

    def full_parts(self) -> list[tuple[str, int]]:
        """Return the parts (batch, part) whose receipts are to be stored."""
        with translate_errors(self.where):
            names = [decode(name).rpartition("/") for name in self.redis.smembers("lf:flush_queue")]
        return sorted((batch, int(part)) for batch, _, part in names)

    def drop_flushed(self, batch: str, part: int, *, retries: int) -> bool:
        """Remove the receipts and errors of a part that is stored in the bucket.

        ``retries`` is that of the batch when the part was read. If jobs of the part run again since, nothing is
        removed: return False.
        """
        return int(self.run(self.scripts.drop_flushed, batch, part, retries)) >= 0

    def claim_orphans(self, *, delay_s: float) -> tuple[str, int] | None:
        """Claim a batch that ended at least ``delay_s`` ago and lost a lease before.

        Return its name and the claim for ``resolve_orphans``, or None. No other worker gets it for an hour.
        """
        found = self.run(self.scripts.orphans_claim, int(delay_s * 1000), _ORPHANS_HOLD_S * 1000)
        return (decode(found[0]), int(found[1])) if found else None

    def resolve_orphans(self, batch: str, claim: int) -> None:
        """Take the batch from the queue, unless it was queued again since the claim."""
        self.run(self.scripts.orphans_resolve, batch, claim)
