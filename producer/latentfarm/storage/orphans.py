"""Removes orphaned images from the bucket: those of leases that ended without a commit.

A worker that lost its lease may have stored an image of the job already, and its last request may arrive later. The key
contains the lease's epoch, so such an image costs space and does no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from latentfarm.batch_state import ACTIVE, FINAL
from latentfarm.errors import InputError
from latentfarm.job_state import TERMINAL_STATES, JobState
from latentfarm.ledger import Ledger
from latentfarm.limits import PART_JOBS
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import images_prefix, intermediates_prefix, parse_image_key, part_indices
from latentfarm.storage.results import MissingResultsError, collect_outdated, read_range

log = logging.getLogger(__name__)

_ENDED = frozenset(state.word for state in TERMINAL_STATES)


def collect_orphans(
    ledger: Ledger, bucket: Bucket, batch: str, *, progress: Callable[[int, int], None] = lambda _parts, _total: None
) -> int:
    """Remove images and intermediates of ended jobs that belong to no committed lease; return how many objects.

    Result objects that newer ones have replaced are removed too. Safe while the batch runs: objects of pending and
    leased jobs stay, and so does every object of a lease that began after this call did.

    Args:
        ledger: the ledger.
        bucket: the bucket.
        batch: name of the batch.
        progress: called after each part with the number of parts so far and of all parts.

    Raises:
        InputError: the batch is unknown, or a part of its results is not ours.
    """
    record = ledger.batch(batch)
    if record.state not in ACTIVE | FINAL:
        return 0
    removed, parts = collect_outdated(ledger, bucket, batch), -(-record.total // PART_JOBS)
    for part in range(parts):
        orphans = _orphans_of(ledger, bucket, batch, part)
        bucket.delete(orphans)
        removed += len(orphans)
        progress(part + 1, parts)
    return removed


def _orphans_of(ledger: Ledger, bucket: Bucket, batch: str, part: int) -> list[str]:
    # before the states: a lease that begins later has a higher epoch
    now_us, record = ledger.now_us(), ledger.batch(batch)
    if record.state not in ACTIVE | FINAL:
        return []
    committed: dict[int, int | None] = {}
    for line in read_range(ledger, bucket, batch, part_indices(part, record.total)):
        if line["state"] != JobState.DONE.word:
            if line["state"] in _ENDED:
                committed[line["index"]] = None
        elif "epoch" in line:
            committed[line["index"]] = line["epoch"]
    orphans = []
    for prefix in (images_prefix(batch, part), intermediates_prefix(batch, part)):
        for key in bucket.keys(prefix):
            index, epoch = parse_image_key(key) or (-1, 0)
            if index in committed and epoch != committed[index] and epoch < now_us:
                orphans.append(key)
    # a recovery or a retry has changed what counts: the next call sees it
    return orphans if not orphans or ledger.batch(batch).retries == record.retries else []


def collect_due(ledger: Ledger, bucket: Bucket, *, delay_s: float = 60) -> int:
    """Remove the orphans of batches that ended at least ``delay_s`` seconds ago and had lost a lease; return how many.

    Each batch is claimed, so that one worker of the farm does it.
    """
    removed = 0
    while claimed := ledger.claim_orphans(delay_s=delay_s):
        batch, claim = claimed
        try:
            removed += collect_orphans(ledger, bucket, batch)
        except MissingResultsError as error:
            # due again when the claim ends
            log.warning("orphans of %s are not collected now: %s", batch, error)
            continue
        except InputError as error:
            log.warning("orphans of %s are not collected: %s", batch, error)
        ledger.resolve_orphans(batch, claim)
    return removed
