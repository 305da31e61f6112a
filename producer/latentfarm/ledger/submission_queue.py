"""The queue of submissions that servers carry out: each is claimed by one server at a time."""

from __future__ import annotations

from latentfarm.ledger.client import LedgerClient
from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import translate_errors


class SubmissionQueue(LedgerClient):
    """Batches that servers have accepted and have yet to submit. If a server dies, another one continues."""

    def queue_submission(self, batch: str) -> bool:
        """Queue a batch that is to be submitted; return False if it is in the queue already."""
        return bool(self.run(self.scripts.submission_queue, batch))

    def claim_submission(self, claim_s: float) -> tuple[str, int] | None:
        """Claim the submission that is due for longest; return its batch and the claim, or None.

        No other caller gets it for ``claim_s`` seconds, unless ``extend_submission`` makes them more.
        """
        found = self.run(self.scripts.submission_claim, int(claim_s * 1000))
        return (decode(found[0]), int(found[1])) if found else None

    def extend_submission(self, batch: str, claim: int, claim_s: float) -> bool:
        """Hold a claim for ``claim_s`` seconds from now; return False if it is lost: another server has it, or none."""
        return bool(self.run(self.scripts.submission_extend, batch, claim, int(claim_s * 1000)))

    def resolve_submission(self, batch: str, claim: int) -> bool:
        """Take a submission that has ended from the queue; return False if the claim is lost."""
        return bool(self.run(self.scripts.submission_resolve, batch, claim))

    def has_submission(self, batch: str) -> bool:
        """Return whether a batch is in the queue, claimed or not."""
        with translate_errors(self.where):
            return self.redis.zscore("{lf}:submissions", batch) is not None
