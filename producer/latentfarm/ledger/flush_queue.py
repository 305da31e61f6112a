"""Queues of housekeeping: parts to be stored in the bucket, and batches of which something is to be removed there."""

from __future__ import annotations

from typing import Any

from latentfarm.batch_state import BatchState
from latentfarm.ledger.client import LedgerClient
from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import translate_errors

#: if a worker dies while it stores a part, another one starts after so many seconds
_FLUSH_HOLD_S = 60
#: seconds until a part is due again
_UNAVAILABLE_DELAY_S, _DAMAGED_DELAY_S, _LONGEST_DAMAGED_DELAY_S = 5, 10, 3600
#: if a worker dies while it deletes a batch that has expired, another one continues after so many seconds
_EXPIRED_HOLD_S = 300
#: if a process dies while it deletes a batch, another one continues after so many seconds
DELETION_HOLD_S = 300
#: if a worker dies while it removes orphans, another one starts after so many seconds
_ORPHANS_HOLD_S = 3600


class FlushQueue(LedgerClient):
    """Parts whose receipts are to be stored in the bucket, and batches of which something is to be removed there."""

    def full_parts(self) -> list[tuple[str, int]]:
        """Return the parts (batch, part) whose receipts are to be stored, claimed or not."""
        with translate_errors(self.where):
            names: list[Any] = self.redis.zrange("{lf}:flush_queue", 0, -1)
        found = [decode(name).rpartition("/") for name in names]
        return sorted((batch, int(part)) for batch, _, part in found)

    def claim_full_part(self) -> tuple[str, int] | None:
        """Claim a part (batch, part) whose receipts are to be stored, the one that is due for longest.

        No other caller gets it for a minute, or until ``postpone_flush``. None if no part is due.
        """
        found = self.run(self.scripts.flush_claim, _FLUSH_HOLD_S * 1000)
        return (decode(found[0]), int(found[1])) if found else None

    def postpone_flush(self, batch: str, part: int, *, damaged: bool) -> float:
        """Make a claimed part due again after some time; return the seconds.

        They are few if the bucket was unavailable, and double with each call if the part itself is ``damaged``.
        """
        delays_s = [_DAMAGED_DELAY_S, _LONGEST_DAMAGED_DELAY_S] if damaged else [_UNAVAILABLE_DELAY_S]
        found = self.run(self.scripts.flush_postpone, batch, part, *(delay_s * 1000 for delay_s in delays_s))
        return int(found) / 1000

    def drop_flushed(self, batch: str, part: int, *, retries: int) -> bool:
        """Remove the receipts and errors of a part whose lines are stored, as the object of generation ``retries``.

        ``retries`` is that of the batch when the lines were read. Return False if they are outdated: then nothing is
        removed, and that object does not count.
        """
        return int(self.run(self.scripts.drop_flushed, batch, part, retries)) >= 0

    def flushed(self, batch: str, part: int) -> tuple[BatchState | None, int]:
        """Return a batch's state, None if it is unknown, and the generation of the object that has a part's lines.

        The generation only rises. It is 0 too if no object has them.
        """
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=True)
            pipe.hget(f"{{lf}}:batch:{batch}", "state")
            pipe.hget(f"{{lf}}:flushed:{batch}", str(part))
            state, generation = pipe.execute()
        return BatchState(decode(state)) if state else None, int(generation or 0)

    def claim_expired(self) -> str | None:
        """Claim a batch whose time to be kept has ended, the one that is due for longest; None if none is due.

        No other caller gets it for five minutes. Its deletion takes it from the queue.
        """
        return decode(self.run(self.scripts.expired_claim, _EXPIRED_HOLD_S * 1000)) or None

    def claim_deletion(self, batch: str = "", *, hold_s: float = DELETION_HOLD_S) -> str | None:
        """Claim the deletion of a batch, or of any that was not claimed in time; no other caller gets it meanwhile.

        Return the batch; None if there is none, or it is not being deleted any more.
        """
        return decode(self.run(self.scripts.deletion_claim, int(hold_s * 1000), batch)) or None

    def claim_orphans(self, *, delay_s: float) -> tuple[str, int] | None:
        """Claim a batch that ended at least ``delay_s`` ago and lost a lease before.

        Return its name and the claim for ``resolve_orphans``, or None. No other worker gets it for an hour.
        """
        found = self.run(self.scripts.orphans_claim, int(delay_s * 1000), _ORPHANS_HOLD_S * 1000)
        return (decode(found[0]), int(found[1])) if found else None

    def resolve_orphans(self, batch: str, claim: int) -> None:
        """Take the batch from the queue, unless it was queued again since the claim."""
        self.run(self.scripts.orphans_resolve, batch, claim)
