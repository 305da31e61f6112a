"""Encode, upload and commit finished images on threads of their own, and retry until Redis and the bucket answer.

One Redis serves the whole farm, so a worker commits twice a second at most, and each commit records all images that
were stored since the last one. A slower worker may save up to four commits, so that its images are committed at once.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from threading import Condition, Event
from typing import Any, Generic, TypeVar

import torch

from latentfarm.errors import JobError, UnavailableError
from latentfarm.image_formats import IMAGE_FORMATS, PNG, ImageFormat
from latentfarm.job import Job
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import CommitOutcome, FailOutcome
from latentfarm.monitoring.logs import log_fields
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import image_key, intermediates_key, part_of
from latentfarm.storage.results import flush_part
from latentfarm_worker.engine.decoder import Rendered
from latentfarm_worker.images.encode import encode_image
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.metrics import Metrics, Operation, Outcome
from latentfarm_worker.supervise.shared_state import SharedState

T = TypeVar("T")
log = logging.getLogger(__name__)

_THREADS = 4
#: seconds between commits in the long run, and how much earlier one commit may be (GCRA, ITU-T I.371)
_COMMIT_EVERY_S, _COMMIT_EARLY_S = 0.5, 1.5
_MAX_COMMITS_PER_CALL = 1000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
#: number of latencies that the median is taken of
_RECENT = 16
#: answers of the ledger for a lease that is no longer held
_LOST = frozenset({"stale", "deleting"})
_FAILURES: dict[FailOutcome, Outcome] = {"failed": "failed", "full": "failed", "retry": "retried", "stale": "lost"}


@dataclass(frozen=True)
class Done(Generic[T]):
    """The result of a request that was answered."""

    value: T


class Abandoned(Enum):
    """Why a request was not repeated any more."""

    STOPPED = "the worker stops"
    LEASE_LOST = "the lease is lost"
    ERROR = "it failed"


@dataclass(frozen=True)
class _Stored:
    """An image in the bucket that waits for its commit."""

    lease: Lease
    receipt: dict[str, Any]
    job: Job
    pixels: int
    began: float


class Uploader:
    """Store and commit images, and record failures, off the engine's thread. Thread-safe.

    Pixels and lease of an image are kept until bucket and ledger have answered. The number of waiting images is
    ``backlog``. It is not limited here: the caller must stop rendering if it is too large.

    Args:
        ledger: the ledger to commit to.
        bucket: the bucket to upload to.
        leases: the leases of the images.
        changed: notified whenever the backlog shrinks.
        state: counts the commits.
        encoder: encodes the images.
        metrics: counts outcomes and retries.
        worker: name of the worker in the ledger.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        bucket: Bucket,
        leases: LeaseRenewer,
        changed: Condition,
        state: SharedState,
        encoder: ImageFileEncoder,
        metrics: Metrics,
        worker: str,
    ) -> None:
        self._ledger = ledger
        self._bucket = bucket
        self._leases = leases
        self._changed = changed
        self._state = state
        self._worker = worker
        self._encoder = encoder
        self._metrics = metrics
        self._stopping = Event()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="upload")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._maintenance = ThreadPoolExecutor(1, thread_name_prefix="maintenance")
        self._stored: deque[_Stored] = deque()
        self._commit_due = 0.0
        self._backlog = 0
        self._latencies_s: deque[float] = deque(maxlen=_RECENT)

    @property
    def backlog(self) -> int:
        """Number of images that are not committed yet."""
        return self._backlog

    @property
    def median_latency_s(self) -> float:
        """Median seconds from an image's pixels to its commit; 0 before the first."""
        return statistics.median(self._latencies_s or (0.0,))

    def store(self, lease: Lease, image: Rendered, intermediates: torch.Tensor | None) -> None:
        """Store and commit an image; ``intermediates`` is its strip of previews, uint8 (height, width, 3)."""
        with self._changed:
            self._backlog += 1
        self._pool.submit(self._store, lease, image, intermediates)

    def fail(self, lease: Lease, error: JobError, *, retry: bool = False) -> None:
        """Record that a job failed by its own fault. If ``retry``, it may run again."""
        self._pool.submit(self._fail, lease, error, retry=retry)

    def stop_waiting(self) -> None:
        """Abandon every request that is not answered at its next try."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop waiting, and end the threads."""
        self.stop_waiting()
        # in this order, because each pool submits to the next
        for pool in (self._pool, self._committer, self._maintenance):
            pool.shutdown()

    # -- images ----------------------------------------------------------------------------------------------

    def _store(self, lease: Lease, image: Rendered, intermediates: torch.Tensor | None) -> None:
        began = time.perf_counter()
        try:
            body, provenance = self._encoder.encode(image), self._encoder.provenance(image)
            strip = None if intermediates is None else encode_image(intermediates, PNG.name, metadata={})
        except Exception as error:
            log.exception("%s could not be encoded", lease.name, extra=log_fields(lease.name))
            self._fail(lease, JobError("encode_error", f"{type(error).__name__}: {error}"), retry=True)
            self._decrement_backlog(1)
            return
        encode_s = time.perf_counter() - began
        outcome = self._upload(lease, image, body, strip)
        if isinstance(outcome, Abandoned):
            self._abandon([lease], outcome, "not stored")
            self._decrement_backlog(1)
            return
        timings = {
            "queue": lease.queued_ms / 1000,
            **image.timings,
            "encode": encode_s,
            "upload": time.perf_counter() - began - encode_s,
        }
        rounded = {name: round(seconds, 6) for name, seconds in timings.items()}
        receipt = {**outcome.value, **provenance, "worker": self._worker, "timings": rounded}
        self._stored.append(_Stored(lease, receipt, image.job, image.width * image.height, began))
        self._committer.submit(self._commit)

    def _upload(
        self, lease: Lease, image: Rendered, body: bytes, strip: bytes | None
    ) -> Done[dict[str, Any]] | Abandoned:
        """Upload an image and its intermediates; return their keys and digests for the receipt."""
        image_format = IMAGE_FORMATS[image.job.image_format]
        stored = self._put(lease, image_key(lease.batch, lease.index, lease.epoch, image_format), body, image_format)
        if strip is None or isinstance(stored, Abandoned):
            return stored
        second = self._put(lease, intermediates_key(lease.batch, lease.index, lease.epoch), strip, PNG)
        return second if isinstance(second, Abandoned) else Done({**stored.value, "intermediates": second.value})

    def _put(self, lease: Lease, key: str, body: bytes, image_format: ImageFormat) -> Done[dict[str, Any]] | Abandoned:
        def put() -> dict[str, Any]:
            self._bucket.put(key, body, content_type=image_format.content_type)
            return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}

        return self._retry_until_available("put", put, lease=lease)

    def _commit(self) -> None:
        """Commit all images that are stored when the next commit is due. It is called once for each stored image."""
        if not self._stored:
            return
        self._stopping.wait(max(0.0, self._commit_due - _COMMIT_EARLY_S - time.monotonic()))
        self._commit_due = max(self._commit_due, time.monotonic()) + _COMMIT_EVERY_S
        stored = [self._stored.popleft() for _ in range(min(len(self._stored), _MAX_COMMITS_PER_CALL))]
        finished = [(each.lease, each.receipt) for each in stored]
        # also images whose lease is lost: the ledger decides, and the answer to an earlier try may have been lost
        outcome = self._retry_until_available("commit", lambda: self._ledger.commit(finished))
        try:
            if isinstance(outcome, Abandoned):
                self._abandon([each.lease for each in stored], outcome, "stored, but not committed")
                return
            for each, commit_outcome in zip(stored, outcome.value, strict=True):
                self._on_committed(each, commit_outcome)
        finally:
            self._decrement_backlog(len(stored))

    def _on_committed(self, stored: _Stored, outcome: CommitOutcome) -> None:
        self._state.commit()
        self._latencies_s.append(time.perf_counter() - stored.began)
        receipt = stored.receipt
        if outcome in _LOST:
            self._metrics.ended("lost")
        else:
            self._metrics.committed(
                size_bytes=receipt["bytes"],
                pixels=stored.pixels,
                compute_cost=stored.job.compute_cost(stored.pixels),
                timings=receipt["timings"],
            )
        self._on_outcome(stored.lease, outcome)
        if outcome == "deleting":
            # the deletion may have listed the bucket before this image was stored
            keys = [receipt["key"], *([receipt["intermediates"]["key"]] if "intermediates" in receipt else [])]
            self._maintain("delete", lambda: self._bucket.delete(keys))
        self._leases.drop(stored.lease)

    def _decrement_backlog(self, images: int) -> None:
        with self._changed:
            self._backlog -= images
            self._changed.notify_all()

    # -- failures and maintenance ----------------------------------------------------------------------------

    def _fail(self, lease: Lease, error: JobError, *, retry: bool) -> None:
        log.warning("%s failed: %s: %s", lease.name, error.code, error, extra=log_fields(lease.name))
        record = {"code": error.code, "message": str(error), "worker": self._worker}
        outcome = self._retry_until_available(
            "fail", lambda: self._ledger.fail(lease, record, retry=retry), lease=lease
        )
        if isinstance(outcome, Abandoned):
            self._abandon([lease], outcome, "failed, but not recorded")
            return
        self._metrics.ended(_FAILURES[outcome.value])
        self._on_outcome(lease, outcome.value)
        self._leases.drop(lease)

    def _on_outcome(self, lease: Lease, outcome: str) -> None:
        if outcome in _LOST:
            log.warning(
                "%s ended after its lease was lost; the ledger keeps the other result",
                lease.name,
                extra=log_fields(lease.name),
            )
        if outcome == "full":
            part = part_of(lease.index)
            self._maintain("flush", lambda: flush_part(self._ledger, self._bucket, lease.batch, part))

    def _abandon(self, leases: Iterable[Lease], reason: Abandoned, state: str) -> None:
        """Log what is not done. After an error the leases are dropped: they expire, and the jobs run again, charged.

        If the worker stops, the leases stay held until ``RenderLoop.release_all`` releases them uncharged.
        """
        for lease in leases:
            log.warning("%s is %s: %s", lease.name, state, reason.value, extra=log_fields(lease.name))
            if reason is Abandoned.ERROR:
                self._leases.drop(lease)

    def _maintain(self, operation: Operation, action: Callable[[], object]) -> None:
        """Run an action in the background that the housekeeping of any worker repeats if this one does not finish."""
        self._maintenance.submit(self._retry_until_available, operation, action)

    def _retry_until_available(
        self, operation: Operation, action: Callable[[], T], *, lease: Lease | None = None
    ) -> Done[T] | Abandoned:
        """Repeat an action while Redis or the bucket is unavailable, as long as the worker runs and holds the lease."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return Done(action())
            except Exception as error:
                if isinstance(error, MissingObjectError) or not isinstance(error, UnavailableError):
                    log.exception("could not %s", operation)
                    return Abandoned.ERROR
                log.warning("cannot %s, retrying in %.1f s: %s", operation, pause_s, error)
                self._metrics.retry(operation, error)
            if self._stopping.wait(pause_s):
                return Abandoned.STOPPED
            if lease is not None and not self._leases.holds(lease):
                return Abandoned.LEASE_LOST
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
