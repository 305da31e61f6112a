"""What comes after the last step: encode, put, commit, on threads of their own, however long the store is away.

A commit costs Redis a call, and one Redis serves the whole farm: two a second are enough, and what is stored between
them is committed together. A worker that was slower has up to four to spare, so that a few pictures wait for nothing.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Event
from typing import Any, TypeVar

import torch

from latentfarm.errors import JobError, UnavailableError
from latentfarm.image_formats import IMAGE_FORMATS, PNG, ImageFormat
from latentfarm.job import Job
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import CommitOutcome, FailOutcome
from latentfarm.monitoring.logs import log_fields
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import image_key, part_of, intermediates_key
from latentfarm.storage.results import flush_part
from latentfarm_worker.engine.decoder import Rendered
from latentfarm_worker.images.encode import encode_image
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.metrics import Metrics, Operation, Outcome
from latentfarm_worker.service.throughput import ThroughputMeter, compute_cost
from latentfarm_worker.supervise.shared_state import SharedState

T = TypeVar("T")
log = logging.getLogger(__name__)

_THREADS = 4
#: seconds between commits in the long run, and how much sooner than that one may be (GCRA, ITU-T I.371)
_COMMIT_EVERY_S, _COMMIT_EARLY_S = 0.5, 1.5
#: that one commit may tell of
_MOST_COMMITS = 1000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
#: measurements that count
_RECENT = 16
#: answers to a commit or a failure that tell of a lost lease
_LOST = frozenset({"stale", "deleting"})
_FAILURES: dict[FailOutcome, Outcome] = {"failed": "failed", "full": "failed", "retry": "retried", "stale": "lost"}


class GaveUpError(Exception):
    """The worker ends before Redis or the store answered."""


class LeaseLostError(GaveUpError):
    """The lease was lost before they did."""


@dataclass(frozen=True)
class _Stored:
    """A picture that lies in the bucket: what its commit tells, and what is counted once it is answered."""

    lease: Lease
    receipt: dict[str, Any]
    keys: list[str]
    job: Job
    pixels: int
    began: float


class Uploader:
    """Takes finished pictures and failures off the engine's thread.

    A picture's pixels, and its lease, are kept until the store and the ledger have answered. ``waiting`` pictures do:
    whoever hands them on must stop at some number of them, for here is no limit.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        bucket: Bucket,
        leases: LeaseRenewer,
        pulse: SharedState,
        encoder: ImageFileEncoder,
        metrics: Metrics,
        worker: str,
    ) -> None:
        self._ledger = ledger
        self._bucket = bucket
        self._leases = leases
        self._pulse = pulse
        self._worker = worker
        self._encoder = encoder
        self._metrics = metrics
        self.meter = ThroughputMeter()
        self._given_up = Event()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._tidier = ThreadPoolExecutor(1, thread_name_prefix="tidy")
        self._stored: deque[_Stored] = deque()
        self._commit_due_s = 0.0
        self._waiting = 0
        self._changed = Condition()
        self._seconds: deque[float] = deque(maxlen=_RECENT)

    @property
    def waiting(self) -> int:
        """Pictures that are not committed yet."""
        return self._waiting

    @property
    def typical_s(self) -> float:
        """Seconds from a picture's pixels to its commit, as measured; 0 before the first."""
        return statistics.median(self._seconds or (0.0,))

    def store(self, lease: Lease, picture: Rendered, strip: torch.Tensor | None) -> None:
        """Store and commit a picture, and the strip of its trace, as soon as that can be."""
        with self._changed:
            self._waiting += 1
        self._pool.submit(self._store, lease, picture, strip)

    def fail(self, lease: Lease, error: JobError, *, retry: bool = False) -> None:
        """Record that a job failed by its own fault; ``retry``: it may run again."""
        self._pool.submit(self._fail, lease, error, retry=retry)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait until fewer pictures wait, so that the condition holds, or the worker ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._given_up.is_set() or condition(), timeout_s)

    def give_up(self) -> None:
        """Wait for nobody any longer: what is not stored by the next answer is not stored."""
        self._given_up.set()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Give up, and end the threads."""
        self.give_up()
        # each hands on to the next
        for pool in (self._pool, self._committer, self._tidier):
            pool.shutdown()

    # -- on the threads --------------------------------------------------------------------------------------

    def _store(self, lease: Lease, picture: Rendered, strip: torch.Tensor | None) -> None:
        """Encode and put one picture; its pixels are kept until the store has them."""
        try:
            stored = self._encode_and_put(lease, picture, strip)
        except LeaseLostError:
            # an unanswered request may have been carried out, and a recovery may have found the image and counted it
            with suppress(GaveUpError):
                self._patiently("note", lambda: self._ledger.note_leftovers(lease.batch, part_of(lease.index)))
        except GaveUpError:
            # the lease is still held: whoever ends the worker gives the job back, uncharged
            log.warning("%s is not stored", lease.name, extra=log_fields(lease.name))
        except Exception:
            # no longer renewed: the sweep charges the job and gives it to the next worker
            log.exception("%s could not be stored", lease.name, extra=log_fields(lease.name))
            self._leases.drop(lease)
        else:
            self._stored.append(stored)
            self._committer.submit(self._commit)
            return
        self._count_down(1)

    def _encode_and_put(self, lease: Lease, picture: Rendered, strip: torch.Tensor | None) -> _Stored:
        made = IMAGE_FORMATS[picture.job.image_format]
        key = image_key(lease.batch, lease.index, lease.epoch, made)
        strip_key = intermediates_key(lease.batch, lease.index, lease.epoch)
        began = time.perf_counter()
        body = self._encoder.encode(picture)
        encoded = time.perf_counter()
        stored = self._put(lease, key, body, made)
        timings = {
            "queue": lease.queued_ms / 1000,
            **picture.timings,
            "encode": encoded - began,
            "upload": time.perf_counter() - encoded,
        }
        rounded = {name: round(seconds, 6) for name, seconds in timings.items()}
        receipt = {**stored, **self._encoder.provenance(picture), "worker": self._worker, "timings": rounded}
        if strip is not None:
            receipt["intermediates"] = self._put(lease, strip_key, encode_image(strip, PNG.name, metadata={}), PNG)
        pixels = picture.width * picture.height
        return _Stored(lease, receipt, [key, strip_key], picture.job, pixels, began)

    def _put(self, lease: Lease, key: str, body: bytes, made: ImageFormat) -> dict[str, Any]:
        """Put an object; return what a receipt says of it."""
        self._patiently("put", lambda: self._bucket.put(key, body, content_type=made.content_type), lease=lease)
        return {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}

    def _commit(self) -> None:
        """Commit what is stored by the time at which the next commit may be; every stored picture has this called."""
        if not self._stored:
            return
        self._given_up.wait(max(0.0, self._commit_due_s - _COMMIT_EARLY_S - time.monotonic()))
        self._commit_due_s = max(self._commit_due_s, time.monotonic()) + _COMMIT_EVERY_S
        stored = [self._stored.popleft() for _ in range(min(len(self._stored), _MOST_COMMITS))]
        told = [(each.lease, each.receipt) for each in stored]
        try:
            # even those whose lease is lost meanwhile: the ledger then knows that something may lie there
            outcomes = self._patiently("commit", lambda: self._ledger.commit(told))
            for each, outcome in zip(stored, outcomes, strict=True):
                self._committed(each, outcome)
        except GaveUpError:
            # their leases are still held: whoever ends the worker gives the jobs back, uncharged
            log.warning("%d pictures are stored, but not committed", len(stored))
        except Exception:
            log.exception("%d pictures could not be committed", len(stored))
            for each in stored:
                self._leases.drop(each.lease)
        finally:
            self._count_down(len(stored))

    def _committed(self, stored: _Stored, outcome: CommitOutcome) -> None:
        self._pulse.commit()
        self._seconds.append(time.perf_counter() - stored.began)
        size = stored.receipt["bytes"]
        work = compute_cost(stored.job, pixels=stored.pixels)
        self.meter.add(images=1, work=work, size_bytes=size, pixels=stored.pixels)
        self._metrics.image("lost" if outcome in _LOST else "done")
        self._metrics.stored(size, stored.receipt["timings"])
        self._after(stored.lease, outcome)
        if outcome == "deleting":
            # the deletion may have looked there before
            self._tidier.submit(self._tidy, "discard", lambda: self._bucket.delete(stored.keys))
        self._leases.drop(stored.lease)

    def _count_down(self, pictures: int) -> None:
        with self._changed:
            self._waiting -= pictures
            self._changed.notify_all()

    def _fail(self, lease: Lease, error: JobError, *, retry: bool) -> None:
        try:
            log.warning("%s failed: %s: %s", lease.name, error.code, error, extra=log_fields(lease.name))
            record = {"code": error.code, "message": str(error), "worker": self._worker}
            outcome = self._patiently("fail", lambda: self._ledger.fail(lease, record, retry=retry), lease=lease)
            self._metrics.image(_FAILURES[outcome])
            self._after(lease, outcome)
            self._leases.drop(lease)
        except GaveUpError:
            log.warning("that %s failed is not recorded", lease.name, extra=log_fields(lease.name))

    def _after(self, lease: Lease, outcome: str) -> None:
        if outcome in _LOST:
            log.warning(
                "%s ended when it was no longer leased to this worker; the results say what counts",
                lease.name,
                extra=log_fields(lease.name),
            )
        if outcome == "full":
            part = part_of(lease.index)
            self._tidier.submit(self._tidy, "flush", lambda: flush_part(self._ledger, self._bucket, lease.batch, part))

    def _tidy(self, what: Operation, action: Callable[[], object]) -> None:
        """Do what a worker's housekeeping, this one's or another's, does later if this one ends before."""
        try:
            self._patiently(what, action)
        except GaveUpError:
            log.info("left to others: %s", what)
        except Exception:
            log.exception("could not %s", what)

    def _patiently(self, what: Operation, action: Callable[[], T], *, lease: Lease | None = None) -> T:
        """Repeat until Redis and the store answer.

        Raises:
            GaveUpError: the worker ends before they did.
            LeaseLostError: the lease was lost before they did.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return action()
            except MissingObjectError:
                raise
            except UnavailableError as error:
                log.warning("cannot %s, trying again in %.1f s: %s", what, pause_s, error)
                self._metrics.retry(what)
            if self._given_up.wait(pause_s):
                raise GaveUpError(what)
            if lease is not None and not self._leases.holds(lease):
                raise LeaseLostError(what)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
