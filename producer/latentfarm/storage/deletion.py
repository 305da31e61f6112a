"""Delete batches: from the ledger and from the bucket."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from latentfarm.errors import NotFoundError
from latentfarm.ledger import Ledger
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import batch_prefix

log = logging.getLogger(__name__)


def delete_batch(
    ledger: Ledger, bucket: Bucket, batch: str, *, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Cancel a batch and remove it from the ledger and the bucket. Return the number of objects removed.

    If it is interrupted, a second call continues, or a server does after five minutes.

    Args:
        ledger: the ledger.
        bucket: the bucket.
        batch: name of the batch.
        progress: called with the number of objects removed so far.

    Raises:
        NotFoundError: the ledger has no such batch.
    """
    ledger.mark_deleting(batch)
    removed = 0
    for count in bucket.delete_all(batch_prefix(batch)):
        removed += count
        progress(removed)
        if ledger.claim_deletion(batch) is None:
            # another process has ended the deletion, and the name may be that of another batch by now
            return removed
    ledger.delete_batch(batch)
    return removed


def continue_deletions(
    ledger: Ledger, bucket: Bucket, *, progress: Callable[[int], None] = lambda _: None
) -> Iterator[str]:
    """Delete batches whose deletion was cut off by the end of its process. Yield the name of each.

    Each deletion is claimed, so that one process of the farm continues it.
    """
    while (batch := ledger.claim_deletion()) is not None:
        try:
            delete_batch(ledger, bucket, batch, progress=progress)
        except NotFoundError:
            # its process lived
            continue
        yield batch


def delete_expired(ledger: Ledger, bucket: Bucket, *, limit: int) -> int:
    """Delete up to ``limit`` batches whose time to be kept has ended; return how many.

    Each batch is claimed, so that one process of the farm does it.
    """
    for deleted in range(limit):
        batch = ledger.claim_expired()
        if batch is None:
            return deleted
        try:
            objects = delete_batch(ledger, bucket, batch)
        except NotFoundError:
            # it was deleted at this moment
            continue
        log.info("batch %s is deleted with %d objects, as it is kept no longer", batch, objects)
    return limit
