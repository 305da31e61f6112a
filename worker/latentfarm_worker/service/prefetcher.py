"""Lease jobs ahead of the engine, read them from the manifest and prepare them, on a thread of their own."""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from threading import Condition

from latentfarm.errors import InputError, JobError, SchemaError, UnavailableError
from latentfarm.job import Job
from latentfarm.ledger import Lease, Ledger
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.manifest import ManifestReader
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.metrics import Metrics

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
#: seconds without another request after the ledger had no job
_EMPTY_PAUSE_S = 0.2


class PrefetchState(Enum):
    """What the prefetcher can do for the engine now, the first that applies."""

    #: a round of leasing is running
    WORKING = auto()
    #: prepared jobs wait for the engine
    READY = auto()
    #: Redis or the bucket was unavailable in the last round
    BACKING_OFF = auto()
    #: the ledger had no job just now
    QUEUE_EMPTY = auto()
    IDLE = auto()


class Prefetcher:
    """Lease and prepare jobs in rounds, so that no step of the engine waits for Redis or the bucket.

    ``request`` and ``take`` are for the engine's thread, the rest is thread-safe.

    Args:
        ledger: the ledger to lease from.
        bucket: the bucket with the manifests.
        leases: renews the leases until the jobs have ended.
        prepare: makes a job ready for the engine; it gets the lease as the handle.
        fail: records that a job cannot be rendered.
        changed: notified after each round.
        metrics: counts retries.
        model: alias of the model to lease for.
        worker: name of the worker in the ledger.
        lease_ttl_s: seconds until a lease expires unless it is renewed.
    """

    def __init__(  # noqa: PLR0913 (all are collaborators, passed by name)
        self,
        *,
        ledger: Ledger,
        bucket: Bucket,
        leases: LeaseRenewer,
        prepare: Callable[[Job, Lease], ImageState],
        fail: Callable[[Lease, JobError], None],
        changed: Condition,
        metrics: Metrics,
        model: str,
        worker: str,
        lease_ttl_s: float,
    ) -> None:
        self._ledger = ledger
        self._manifest = ManifestReader(bucket)
        self._leases = leases
        self._prepare = prepare
        self._fail = fail
        self._changed = changed
        self._metrics = metrics
        self._model, self._worker, self._lease_ttl_s = model, worker, lease_ttl_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._working = False
        #: leased but not read yet, with the time of the lease
        self._unread: deque[tuple[Lease, float]] = deque()
        self._ready: deque[tuple[Lease, ImageState]] = deque()
        self._pause_s, self._retry_at = _FIRST_PAUSE_S, 0.0
        self._empty_until = 0.0
        self._request_id = uuid.uuid4().hex
        self._stopped = False

    @property
    def state(self) -> PrefetchState:
        # the order matters: a round that ends between two checks has filled `_ready`
        if self._working:
            return PrefetchState.WORKING
        if self._ready:
            return PrefetchState.READY
        now = time.monotonic()
        if self._unread or now < self._retry_at:
            return PrefetchState.BACKING_OFF
        return PrefetchState.QUEUE_EMPTY if now < self._empty_until else PrefetchState.IDLE

    @property
    def leases(self) -> list[Lease]:
        """The leases of jobs that the engine has not taken yet."""
        return [lease for lease, _ in (*tuple(self._unread), *tuple(self._ready))]

    def request(self, count: int) -> None:
        """Start a round for up to ``count`` more jobs, unless one is running or a pause has not ended."""
        now = time.monotonic()
        if self._working or self._stopped or now < self._retry_at:
            return
        if self._unread or (count > 0 and now >= self._empty_until):
            self._working = True
            self._pool.submit(self._round, count)

    def take(self) -> list[ImageState]:
        """Return the prepared jobs whose lease is still held."""
        taken = []
        while self._ready:
            lease, image = self._ready.popleft()
            if self._leases.holds(lease):
                taken.append(image)
        return taken

    def stop(self) -> None:
        """Start no more rounds. Jobs that a running round still leases are released uncharged."""
        self._stopped = True

    def close(self) -> None:
        """Stop, and wait for the running round."""
        self.stop()
        self._pool.shutdown()

    # -- on the prefetch thread ------------------------------------------------------------------------------

    def _round(self, count: int) -> None:
        try:
            if not self._unread:
                self._lease(count)
            self._read()
            self._pause_s = _FIRST_PAUSE_S
        except (UnavailableError, SchemaError) as error:
            log.warning("cannot lease, retrying in %.1f s: %s", self._pause_s, error)
            self._metrics.retry("lease", error)
            self._retry_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        except Exception:
            # unread jobs are dropped: reading them again would fail again
            log.exception("a round of leasing failed")
            self._unread.clear()
            self._retry_at = time.monotonic() + _LONGEST_PAUSE_S
        finally:
            self._working = False
            with self._changed:
                self._changed.notify_all()

    def _lease(self, count: int) -> None:
        # the id stays the same until Redis has answered: a repeated request returns the leases of the lost answer
        request = self._request_id
        leases = self._ledger.lease(self._model, self._worker, count, lease_s=self._lease_ttl_s, request=request)
        self._request_id = uuid.uuid4().hex
        if not leases:
            self._empty_until = time.monotonic() + _EMPTY_PAUSE_S
        self._leases.hold(leases)
        now = time.perf_counter()
        self._unread.extend((lease, now) for lease in leases)
        if self._stopped:
            self._ledger.release(self._leases.withdraw(leases))

    def _read(self) -> None:
        while self._unread:
            lease, leased_at = self._unread[0]
            if self._leases.holds(lease):
                try:
                    image = self._prepare(self._manifest.job(lease.batch, lease.index), lease)
                except JobError as error:
                    self._fail(lease, error)
                except (InputError, MissingObjectError) as error:
                    self._fail(lease, JobError("manifest_unreadable", str(error)))
                else:
                    image.queued = leased_at
                    # append before popping: a concurrent reader of `leases` sees the lease twice rather than never
                    self._ready.append((lease, image))
            self._unread.popleft()
