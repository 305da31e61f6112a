"""Encode and upload finished images on threads of their own, and retry until the bucket answers.

For an interactive image a client waits, so it has threads of its own.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from threading import Condition, Event
from typing import Any

from latentfarm.errors import JobError
from latentfarm.ledger import Lease, Ledger
from latentfarm.monitoring.logs import log_fields
from latentfarm.storage.bucket import Bucket
from latentfarm_worker.engine.outcomes import Rendered
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.service.backlog import Backlog
from latentfarm_worker.service.checkpoints import Checkpoints
from latentfarm_worker.service.commits import Commits, Stored
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.image_objects import ImageObjects
from latentfarm_worker.service.image_review import ImageReview
from latentfarm_worker.service.job_failures import JobFailures
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.retries import Abandoned, Broken, Retries, log_abandoned
from latentfarm_worker.service.threads import Threads

log = logging.getLogger(__name__)

_THREADS, _INTERACTIVE_THREADS = 4, 2


@dataclass
class _Waiting:
    """A finished image that is not stored yet; ``done`` once it is, or never will be."""

    lease: Lease
    image: Rendered
    done: bool = False


class Uploader:
    """Store images and let them be committed, and record failures, off the engine's thread. Thread-safe.

    Pixels and lease of an image are kept until bucket and ledger have answered. The number of waiting images is
    ``backlog.images``. It is not limited here: the caller must stop rendering if it is too large.

    Args:
        ledger: the ledger to commit to.
        bucket: the bucket to upload to.
        leases: the leases of the images.
        changed: notified whenever the backlog shrinks.
        hooks: what follows from a commit.
        encoder: encodes the images.
        checkpoints: stores those of drafts.
        review: checks and scores the images.
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
        hooks: WorkerHooks,
        encoder: ImageFileEncoder,
        checkpoints: Checkpoints,
        review: ImageReview,
        metrics: Metrics,
        threads: Threads,
        worker: str,
    ) -> None:
        self._worker = worker
        self._metrics = metrics
        self.review = review
        self._stopping = Event()
        self.backlog = Backlog(changed)
        self.retries = retries = Retries(self._stopping, leases, metrics)
        self._pool = threads.pool("upload", _THREADS)
        self._interactive_pool = threads.pool("upload-interactive", _INTERACTIVE_THREADS)
        self._objects = ImageObjects(bucket, encoder, checkpoints=checkpoints, retries=retries, pool=self._pool)
        self.failures = failures = JobFailures(
            ledger=ledger,
            leases=leases,
            hooks=hooks,
            metrics=metrics,
            retries=retries,
            pool=self._pool,
            worker=worker,
        )
        self.commits = Commits(
            ledger=ledger,
            leases=leases,
            backlog=self.backlog,
            failures=failures,
            hooks=hooks,
            metrics=metrics,
            retries=retries,
            stopping=self._stopping,
            threads=threads,
        )

    def store(self, lease: Lease, image: Rendered) -> None:
        """Store and commit an image or a draft."""
        self.backlog.enter()
        waiting = _Waiting(lease, image)
        pool = self._interactive_pool if lease.interactive else self._pool
        pool.submit(self._store, waiting, on_error=lambda error: self._on_store_error(waiting, error))

    def stop_waiting(self) -> None:
        """Abandon every request that is not answered at its next try."""
        self._stopping.set()
        with self.backlog.changed:
            self.backlog.changed.notify_all()

    def close(self) -> None:
        """Stop waiting, and end the threads."""
        self.stop_waiting()
        # in this order, because uploads are followed by commits
        self._interactive_pool.close()
        self._pool.close()
        self.commits.close()

    def _store(self, waiting: _Waiting) -> None:
        lease, image = waiting.lease, waiting.image
        began = time.perf_counter()
        try:
            reviewed = self.review.entries(image)
            review_s = time.perf_counter() - began
            outcome = self._objects.store(lease, image)
        except JobError as error:
            self._leave_backlog(waiting)
            self.failures.record(lease, error, retry=False)
            return
        except Exception as error:
            log.exception("%s could not be encoded", lease.name, extra=log_fields(lease.name))
            self._drop_image(waiting, JobError.unexpected("encode_error", error))
            return
        if isinstance(outcome, Broken):
            self._drop_image(waiting, JobError.unexpected("upload_error", outcome.error))
            return
        if isinstance(outcome, Abandoned):
            log_abandoned([lease], outcome, "not stored")
            self._leave_backlog(waiting)
            return
        objects = outcome.value
        timings = {
            "queue": lease.queued_ms / 1000,
            **image.timings,
            "encode": review_s + objects.encode_s,
            "upload": objects.upload_s,
        }
        rounded = {name: round(seconds, 6) for name, seconds in timings.items()}
        facts: dict[str, Any] = {"tokens": image.tokens, "worker": self._worker, "timings": rounded}
        if image.forked:
            facts["forked"] = {"evaluations": image.forked}
            self._metrics.evaluations("shared", image.forked)
        receipt = {**objects.receipt, **facts, **reviewed}
        self.commits.add(Stored(lease, receipt, image.width * image.height, _work_of(image), began))
        self._end_storing(waiting)
        self.commits.submit()

    def _drop_image(self, waiting: _Waiting, error: JobError) -> None:
        """Let a job whose image cannot be stored fail or run again."""
        self._leave_backlog(waiting)
        self.failures.record(waiting.lease, error, retry=True)

    def _on_store_error(self, waiting: _Waiting, error: Exception) -> None:
        if waiting.done:
            self.failures.give_back(waiting.lease)
        else:
            self._drop_image(waiting, JobError.unexpected("upload_error", error))

    def _end_storing(self, waiting: _Waiting) -> None:
        waiting.done = True
        self.backlog.end_storing()

    def _leave_backlog(self, waiting: _Waiting) -> None:
        """Forget an image that is not stored."""
        self._end_storing(waiting)
        self.backlog.leave(1)


def _work_of(image: Rendered) -> float:
    """Return the cost of the evaluations that were made of an image here, of those of the whole job."""
    whole = image.job.compute_cost(image.width * image.height)
    return whole * image.evaluations_made / image.evaluations if image.evaluations else whole
