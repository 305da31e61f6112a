"""The checkpoints of images in the bucket: stored, read, and left to be deleted; and the seconds that they take."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable
from typing import Any

from latentfarm.image_formats import IMAGE_FORMATS
from latentfarm.ledger import Lease
from latentfarm.monitoring.logs import log_fields
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import checkpoint_key, draft_key
from latentfarm_worker.engine.image_checkpoint import CheckpointError, ImageCheckpoint, decode, encode
from latentfarm_worker.service.metrics import CheckpointEvent, Metrics
from latentfarm_worker.service.recent_seconds import RecentSeconds

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/octet-stream"


class Checkpoints:
    """Stores and reads the checkpoints of one model's images. Thread-safe.

    Args:
        bucket: the bucket.
        metrics: counts them.
    """

    def __init__(self, bucket: Bucket, metrics: Metrics) -> None:
        self._bucket = bucket
        self._metrics = metrics
        self._puts, self._reads = RecentSeconds(), RecentSeconds()

    # -- what they cost --------------------------------------------------------------------------------------

    @property
    def store_s(self) -> float:
        """Return the median seconds in which checkpoints and images, which are as large, are stored; 0 before any."""
        return self._puts.median or 0.0

    @property
    def seconds(self) -> float:
        """Return the median seconds in which one is stored and read. Before one is read, both take equally long."""
        read_s = self._reads.median
        return self.store_s + (self.store_s if read_s is None else read_s)

    def add_image(self, seconds: float) -> None:
        """Record how long an image took to its place in the bucket."""
        self._puts.add(seconds)

    # -- objects ---------------------------------------------------------------------------------------------

    def put(self, lease: Lease, checkpoint: ImageCheckpoint) -> dict[str, Any]:
        """Store the checkpoint that a lease has made; return its key, sha256 and bytes.

        Raises:
            UnavailableError: the bucket does not take it.
        """
        began = time.perf_counter()
        body, key = encode(checkpoint), checkpoint_key(lease.batch, lease.index, lease.epoch)
        self._bucket.put(key, body, content_type=CONTENT_TYPE)
        self._puts.add(time.perf_counter() - began)
        return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}

    def read(self, lease: Lease) -> ImageCheckpoint | None:
        """Return the checkpoint from which a job goes on, None if it begins, or its checkpoint cannot be used.

        Raises:
            UnavailableError: the bucket does not answer.
        """
        if not lease.checkpoint:
            return None
        began = time.perf_counter()
        try:
            checkpoint = decode(self._bucket.get(checkpoint_key(lease.batch, lease.index, lease.checkpoint)))
        except MissingObjectError as error:
            self._report(lease, "missing", error)
            return None
        except CheckpointError as error:
            self._report(lease, "damaged", error)
            return None
        self._reads.add(time.perf_counter() - began)
        return checkpoint

    def use(self, checkpoint: ImageCheckpoint) -> None:
        """Record that an image goes on from a checkpoint."""
        self._metrics.checkpoint("resumed")
        self._metrics.evaluations("saved", checkpoint.evaluations)

    def refuse(self, lease: Lease, error: CheckpointError) -> None:
        """Record that a checkpoint is that of another image."""
        self._report(lease, "mismatched", error)

    def _report(self, lease: Lease, event: CheckpointEvent, error: Exception) -> None:
        log.warning("%s begins again: %s", lease.name, error, extra=log_fields(lease.name))
        self._metrics.checkpoint(event)


def outdated_keys(leases: Iterable[Lease]) -> list[str]:
    """Return the keys of what was stored of jobs before their leases, and is not needed any more.

    The preview of a draft is in any format.
    """
    return [
        key
        for lease in leases
        if lease.checkpoint
        for key in (
            checkpoint_key(lease.batch, lease.index, lease.checkpoint),
            *(draft_key(lease.batch, lease.index, lease.checkpoint, each) for each in IMAGE_FORMATS.values()),
        )
    ]
