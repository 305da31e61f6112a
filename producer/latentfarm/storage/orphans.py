"""Removes orphaned objects from the bucket: images of leases that ended without a commit, checkpoints of ended jobs.

A worker that lost its lease may have stored an image of the job already, and its last request may arrive later. The key
contains the lease's epoch, so such an image costs space and does no harm. A process that ends a job deletes its
checkpoint and the preview of its draft, but may die before that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from latentfarm.batch_state import ACTIVE, FINAL
from latentfarm.errors import InputError
from latentfarm.job_state import TERMINAL_STATES, JobState
from latentfarm.ledger import Ledger
from latentfarm.limits import PART_JOBS
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import (
    drafts_prefix,
    images_prefix,
    intermediates_prefix,
    parse_draft_key,
    parse_image_key,
    part_indices,
)
from latentfarm.storage.results import MissingResultsError, collect_outdated, read_range

log = logging.getLogger(__name__)

_ENDED = frozenset(state.word for state in TERMINAL_STATES)


def collect_orphans(
    ledger: Ledger, bucket: Bucket, batch: str, *, progress: Callable[[int, int], None] = lambda _parts, _total: None
) -> int:
    """Remove images, intermediates and checkpoints of ended jobs that no committed lease made; return how many objects.

    A drafted job keeps the checkpoint and the preview of its draft, and another ended job keeps none. Result objects
    that newer ones have replaced are removed too. Safe while the batch runs: objects of pending and leased jobs stay,
    and so does every object of a lease that began after this call did.

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
    # most batches have no drafts: then their parts are not listed one by one
    with_drafts = any(bucket.keys(drafts_prefix(batch)))
    for part in range(parts):
        orphans = _orphans_of(ledger, bucket, batch, part, with_drafts=with_drafts)
        bucket.delete(orphans)
        removed += len(orphans)
        progress(part + 1, parts)
    return removed


def _orphans_of(ledger: Ledger, bucket: Bucket, batch: str, part: int, *, with_drafts: bool) -> list[str]:
    # before the states: a lease that begins later has a higher epoch
    now_us, record = ledger.now_us(), ledger.batch(batch)
    if record.state not in ACTIVE | FINAL:
        return []
    images, drafts = _Kept(now_us), _Kept(now_us)
    for line in read_range(ledger, bucket, batch, part_indices(part, record.total)):
        images.add(line, JobState.DONE)
        drafts.add(line, JobState.DRAFTED)
    keys = chain(bucket.keys(images_prefix(batch, part)), bucket.keys(intermediates_prefix(batch, part)))
    orphans = [key for key in keys if images.is_orphan(parse_image_key(key))]
    if with_drafts:
        orphans += [key for key in bucket.keys(drafts_prefix(batch, part)) if drafts.is_orphan(parse_draft_key(key))]
    # a recovery, a retry or the like has changed what counts: the next call sees it
    return orphans if not orphans or ledger.batch(batch).retries == record.retries else []


class _Kept:
    """Which objects of one kind the ended jobs of a part keep: those of one epoch, or none.

    Objects of leases that began at ``now_us`` or later stay.
    """

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us
        self._epochs: dict[int, int | None] = {}

    def add(self, line: Mapping[str, Any], state: JobState) -> None:
        """Take the result line of a job into account, which has such objects if it is in this state."""
        if line["state"] != state.word:
            if line["state"] in _ENDED:
                self._epochs[line["index"]] = None
        elif "epoch" in line:
            self._epochs[line["index"]] = line["epoch"]

    def is_orphan(self, parsed: tuple[int, int] | None) -> bool:
        """Return whether an object is of no use, by the index and the epoch in its key; None for a foreign object."""
        if parsed is None:
            return False
        index, epoch = parsed
        return index in self._epochs and epoch != self._epochs[index] and epoch < self._now_us


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
