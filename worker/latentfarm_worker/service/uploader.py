"""Encode, upload and commit finished images on threads of their own, and retry until Redis and the bucket answer.

One Redis serves the whole farm, so a worker commits once a second at most, and each commit records all images that
were stored since the last one. Images that end together are committed together, once the last of them is stored. A
slower worker may save up to four commits, so that its images are committed at once.

For an interactive image a client waits, so it has threads of its own, and is committed as soon as it is stored.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Condition, Event
from typing import Any

from latentfarm.errors import JobError
from latentfarm.image_formats import IMAGE_FORMATS, PNG, ImageFormat
from latentfarm.job import Job
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import CommitOutcome, FailOutcome
from latentfarm.monitoring.logs import log_fields
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import image_key, intermediates_key
from latentfarm_worker.engine.outcomes import Rendered
from latentfarm_worker.images.encode import encode_image
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.safety.gate import SafetyGate
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.metrics import Metrics, Outcome
from latentfarm_worker.service.retries import Abandoned, Broken, Done, Retries, printable
from latentfarm_worker.service.threads import Threads
from latentfarm_worker.supervise.shared_state import SharedState

log = logging.getLogger(__name__)

_THREADS, _INTERACTIVE_THREADS = 4, 2
#: seconds between commits in the long run, and how much earlier one commit may be (GCRA, ITU-T I.371)
_COMMIT_EVERY_S, _COMMIT_EARLY_S = 1.0, 3.0
#: how long a commit waits for other images that are being stored
_GATHER_S = 0.5
_MAX_COMMITS_PER_CALL = 1000
#: number of latencies that the median is taken of
_RECENT = 16
#: answers of the ledger for a lease that is no longer held
_LOST = frozenset({"stale", "deleting"})
_FAILURES: dict[FailOutcome, Outcome] = {"failed": "failed", "full": "failed", "retry": "retried", "stale": "lost"}


class UploadHooks:
    """What the uploader cannot do itself. The base class ignores it."""

    def on_full_part(self) -> None:
        """Handle a part whose last job has ended: its results can be stored."""

    def delete_objects(self, keys: list[str]) -> None:
        """Delete images that were stored too late: their batch is deleted."""


@dataclass
class _Waiting:
    """A finished image that is not stored yet; ``done`` once it has left the backlog of images to store."""

    lease: Lease
    image: Rendered
    done: bool = False


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
        hooks: what follows from a commit.
        encoder: encodes the images.
        safety: checks the images.
        metrics: counts outcomes and retries.
        threads: starts the threads.
        worker: name of the worker in the ledger.
    """

    def __init__(  # noqa: PLR0913 (all are collaborators, passed by name)
        self,
        *,
        ledger: Ledger,
        bucket: Bucket,
        leases: LeaseRenewer,
        changed: Condition,
        state: SharedState,
        hooks: UploadHooks,
        encoder: ImageFileEncoder,
        safety: SafetyGate,
        metrics: Metrics,
        threads: Threads,
        worker: str,
    ) -> None:
        self._ledger = ledger
        self._bucket = bucket
        self._leases = leases
        self._changed = changed
        self._state = state
        self._hooks = hooks
        self._worker = worker
        self._encoder = encoder
        self.safety = safety
        self._metrics = metrics
        self._stopping = Event()
        self._retries = Retries(self._stopping, leases, metrics)
        self._pool = threads.pool("upload", _THREADS)
        self._interactive_pool = threads.pool("upload-interactive", _INTERACTIVE_THREADS)
        self._committer = threads.pool("commit", 1)
        self._stored: deque[_Stored] = deque()
        #: of them those that a client waits for
        self._interactive_stored = 0
        self._commit_due = 0.0
        self._backlog = 0
        #: images of the backlog that are not in the bucket yet
        self._storing = 0
        self._latencies_s: deque[float] = deque(maxlen=_RECENT)

    @property
    def backlog(self) -> int:
        """Number of images that are not committed yet."""
        return self._backlog

    @property
    def median_latency_s(self) -> float:
        """Median seconds from an image's pixels to its commit; 0 before the first."""
        return statistics.median(self._latencies_s or (0.0,))

    def store(self, lease: Lease, image: Rendered) -> None:
        """Store and commit an image and its strip of intermediates."""
        with self._changed:
            self._backlog += 1
            self._storing += 1
        stored = _Waiting(lease, image)
        pool = self._interactive_pool if lease.interactive else self._pool
        pool.submit(self._store, stored, on_error=lambda error: self._on_store_error(stored, error))

    def fail(self, lease: Lease, error: JobError, *, retry: bool = False) -> None:
        """Record that a job failed by its own fault. If ``retry``, it may run again."""
        self._pool.submit(self._fail, lease, error, retry, on_error=lambda _: self._give_back(lease))

    def stop_waiting(self) -> None:
        """Abandon every request that is not answered at its next try."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop waiting, and end the threads."""
        self.stop_waiting()
        # in this order, because uploads are followed by commits
        self._interactive_pool.close()
        self._pool.close()
        self._committer.close()

    # -- images ----------------------------------------------------------------------------------------------

    def _store(self, waiting: _Waiting) -> None:
        lease, image = waiting.lease, waiting.image
        began = time.perf_counter()
        try:
            checked = self.safety.check(image.job, image.pixels)
            body, provenance = self._encoder.encode(image), self._encoder.provenance(image)
            strip = image.strip
            encoded = None if strip is None else encode_image(strip, PNG.name, metadata={})
        except JobError as error:
            self._leave_backlog(waiting)
            self._fail(lease, error, retry=False)
            return
        except Exception as error:
            log.exception("%s could not be encoded", lease.name, extra=log_fields(lease.name))
            self._drop_image(waiting, JobError.unexpected("encode_error", error))
            return
        encode_s = time.perf_counter() - began
        outcome = self._upload(lease, image, body, encoded)
        if isinstance(outcome, Broken):
            self._drop_image(waiting, JobError.unexpected("upload_error", outcome.error))
            return
        if isinstance(outcome, Abandoned):
            _log_abandoned([lease], outcome, "not stored")
            self._leave_backlog(waiting)
            return
        timings = {
            "queue": lease.queued_ms / 1000,
            **image.timings,
            "encode": encode_s,
            "upload": time.perf_counter() - began - encode_s,
        }
        rounded = {name: round(seconds, 6) for name, seconds in timings.items()}
        facts = {"tokens": image.tokens, "worker": self._worker, "timings": rounded}
        receipt = {**outcome.value, **provenance, **facts, **checked}
        with self._changed:
            self._interactive_stored += lease.interactive
        self._stored.append(_Stored(lease, receipt, image.job, image.width * image.height, began))
        self._end_storing(waiting)
        self._committer.submit(self._commit)

    def _drop_image(self, waiting: _Waiting, error: JobError) -> None:
        """Let a job whose image cannot be stored fail or run again."""
        self._leave_backlog(waiting)
        self._fail(waiting.lease, error, retry=True)

    def _on_store_error(self, waiting: _Waiting, error: Exception) -> None:
        if waiting.done:
            self._give_back(waiting.lease)
        else:
            self._drop_image(waiting, JobError.unexpected("upload_error", error))

    def _upload(
        self, lease: Lease, image: Rendered, body: bytes, strip: bytes | None
    ) -> Done[dict[str, Any]] | Abandoned | Broken:
        """Upload an image and its intermediates; return their keys and digests for the receipt."""
        image_format = IMAGE_FORMATS[image.job.image_format]
        stored = self._put(lease, image_key(lease.batch, lease.index, lease.epoch, image_format), body, image_format)
        if strip is None or not isinstance(stored, Done):
            return stored
        second = self._put(lease, intermediates_key(lease.batch, lease.index, lease.epoch), strip, PNG)
        return Done({**stored.value, "intermediates": second.value}) if isinstance(second, Done) else second

    def _put(
        self, lease: Lease, key: str, body: bytes, image_format: ImageFormat
    ) -> Done[dict[str, Any]] | Abandoned | Broken:
        def put() -> dict[str, Any]:
            self._bucket.put(key, body, content_type=image_format.content_type)
            return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}

        return self._retries.repeat("put", put, lease=lease, pool=self._pool)

    # -- commits ---------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Commit all images that are stored when the next commit is due. It is called once for each stored image."""
        if not self._stored:
            return
        self._wait_for_commit()
        stored = [self._stored.popleft() for _ in range(min(len(self._stored), _MAX_COMMITS_PER_CALL))]
        with self._changed:
            self._interactive_stored -= sum(each.lease.interactive for each in stored)
        try:
            self._commit_together(stored)
        except Exception as error:  # noqa: BLE001 - the leases must end after any
            self._committer.report(error)
            for each in stored:
                self._give_back(each.lease)
        finally:
            self._decrement_backlog(len(stored))

    def _wait_for_commit(self) -> None:
        """Wait until a commit is due, and for images that are being stored; not if a client waits for a stored one."""
        with self._changed:
            self._changed.wait_for(self._must_commit, max(0.0, self._commit_due - _COMMIT_EARLY_S - time.monotonic()))
            # images of one step end together: else the first ones would use up the commits, and the last would wait
            self._changed.wait_for(lambda: self._must_commit() or not self._storing, _GATHER_S)
            if not self._interactive_stored:
                self._commit_due = max(self._commit_due, time.monotonic()) + _COMMIT_EVERY_S

    def _must_commit(self) -> bool:
        return self._stopping.is_set() or self._interactive_stored > 0

    def _commit_together(self, stored: list[_Stored]) -> None:
        finished = [(each.lease, each.receipt) for each in stored]

        def commit() -> list[tuple[_Stored, CommitOutcome]]:
            return list(zip(stored, self._ledger.commit(finished), strict=True))

        # also images whose lease is lost: the ledger decides, and the answer to an earlier try may have been lost
        outcome = self._retries.repeat("commit", commit, pool=self._committer)
        if isinstance(outcome, Abandoned):
            _log_abandoned([each.lease for each in stored], outcome, "stored, but not committed")
        elif isinstance(outcome, Done):
            for each, commit_outcome in outcome.value:
                self._leases.drop(each.lease)
                with self._committer.guard():
                    self._on_committed(each, commit_outcome)
        elif len(stored) > 1:
            # one image may be the cause: the others are committed without it
            for each in stored:
                self._commit_together([each])
        else:
            self._fail(stored[0].lease, JobError.unexpected("commit_error", outcome.error), retry=True)

    def _on_committed(self, stored: _Stored, outcome: CommitOutcome) -> None:
        receipt = stored.receipt
        if outcome in _LOST:
            self._metrics.ended("lost")
        else:
            self._state.commit()
            self._latencies_s.append(time.perf_counter() - stored.began)
            self._metrics.committed(
                size_bytes=receipt["bytes"],
                pixels=stored.pixels,
                compute_cost=stored.job.compute_cost(stored.pixels),
                timings=receipt["timings"],
            )
        self._on_outcome(stored.lease, outcome)
        if outcome == "deleting":
            # the deletion may have listed the bucket before this image was stored
            intermediates = receipt.get("intermediates")
            self._hooks.delete_objects([receipt["key"], *([intermediates["key"]] if intermediates else [])])

    def _decrement_backlog(self, images: int) -> None:
        with self._changed:
            self._backlog -= images
            self._changed.notify_all()

    def _end_storing(self, waiting: _Waiting) -> None:
        with self._changed:
            waiting.done = True
            self._storing -= 1
            self._changed.notify_all()

    def _leave_backlog(self, waiting: _Waiting) -> None:
        """Forget an image that is not stored."""
        self._end_storing(waiting)
        self._decrement_backlog(1)

    # -- failures --------------------------------------------------------------------------------------------

    def _fail(self, lease: Lease, error: JobError, retry: bool) -> None:  # noqa: FBT001 - the pool passes no names
        message = printable(str(error))
        log.warning("%s failed: %s: %s", lease.name, error.code, message, extra=log_fields(lease.name))
        record = {"code": error.code, "message": message, "worker": self._worker}
        outcome = self._retries.repeat(
            "fail", lambda: self._ledger.fail(lease, record, retry=retry), lease=lease, pool=self._pool
        )
        if isinstance(outcome, Broken):
            self._give_back(lease)
        elif isinstance(outcome, Abandoned):
            _log_abandoned([lease], outcome, "failed, but not recorded")
        else:
            self._leases.drop(lease)
            self._metrics.ended(_FAILURES[outcome.value])
            self._on_outcome(lease, outcome.value)

    def _give_back(self, lease: Lease) -> None:
        """Release a job uncharged whose end cannot be recorded."""
        if not self._leases.holds(lease):
            return
        outcome = self._retries.repeat("release", lambda: self._ledger.release([lease]), lease=lease, pool=self._pool)
        if outcome is not Abandoned.STOPPED:
            # if even this failed, the lease expires
            self._leases.drop(lease)

    def _on_outcome(self, lease: Lease, outcome: str) -> None:
        if outcome in _LOST:
            log.warning(
                "%s ended after its lease was lost; the ledger keeps the other result",
                lease.name,
                extra=log_fields(lease.name),
            )
        if outcome == "full":
            self._hooks.on_full_part()


def _log_abandoned(leases: Iterable[Lease], reason: Abandoned, state: str) -> None:
    """Log what is not done. If the worker stops, ``RenderLoop.release_all`` releases the leases uncharged."""
    for lease in leases:
        log.warning("%s is %s: %s", lease.name, state, reason.value, extra=log_fields(lease.name))
