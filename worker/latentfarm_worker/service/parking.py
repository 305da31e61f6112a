"""Put images down midway: their checkpoints go to the bucket, and the next lease of each job goes on from there.

Four things put images down: the end of a worker, a pause of their batch that takes effect at once, an urgent image that
has had their place for seconds, and an urgent job of another model of the worker. An image is ended instead of that if
this takes no longer than to store its checkpoint and to read it, both of which are measured, or if a client waits for
it. Only if it would come too late is it parked all the same.

The engine's thread takes images out of the engine. All else is done on threads of their own. Until the ledger has
recorded it, the worker keeps the leases: if it dies meanwhile, they expire as those of images that run.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial
from threading import Lock
from typing import cast

from latentfarm.ledger import Lease, Ledger
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.image_checkpoint import ImageCheckpoint
from latentfarm_worker.service.backlog import Backlog
from latentfarm_worker.service.checkpoints import Checkpoints, outdated_keys
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.job_failures import JobFailures
from latentfarm_worker.service.late_jobs import LateJobs
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.lease_returns import LeaseReturns
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.retries import Abandoned, Broken, Done, Retries, log_abandoned
from latentfarm_worker.service.threads import Threads

log = logging.getLogger(__name__)

_THREADS = 4
#: seconds that an urgent image has had an image's place before that is parked: other workers may have room for it
PAUSED_S = 3.0


class Parking:
    """Puts images of one engine down. ``park`` and ``park_due`` are for the engine's thread, the rest is thread-safe.

    Args:
        engine: the engine.
        ledger: the ledger.
        leases: the leases of the images.
        returns: releases jobs of which nothing is made yet.
        checkpoints: stores the checkpoints.
        backlog: counts the images until the ledger has recorded them.
        failures: releases jobs that cannot be parked.
        late: estimates how long images still take.
        hooks: what follows.
        retries: repeats requests.
        metrics: counts the images.
        threads: starts the threads.
    """

    def __init__(  # noqa: PLR0913 (all are collaborators, passed by name)
        self,
        *,
        engine: Engine,
        ledger: Ledger,
        leases: LeaseRenewer,
        returns: LeaseReturns,
        checkpoints: Checkpoints,
        backlog: Backlog,
        failures: JobFailures,
        late: LateJobs,
        hooks: WorkerHooks,
        retries: Retries,
        metrics: Metrics,
        threads: Threads,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._leases = leases
        self._returns = returns
        self._checkpoints = checkpoints
        self._backlog = backlog
        self._failures = failures
        self._late = late
        self._hooks = hooks
        self._retries = retries
        self._metrics = metrics
        self._pool = threads.pool("park", _THREADS)
        #: of the two collections below
        self._lock = Lock()
        #: batches that are paused at once
        self._paused: set[str] = set()
        #: jobs whose checkpoints are stored
        self._stored: list[Lease] = []
        #: held by the thread that reports to the ledger: one call reports what others store meanwhile
        self._recording = Lock()

    def pause(self, batch: str) -> None:
        """Park the images of a batch before the next step."""
        with self._lock:
            self._paused.add(batch)

    def park_due(self, deadline: float | None) -> None:
        """Park the images that are to be put down now.

        Args:
            deadline: ``time.monotonic()`` by which a worker that ends must have ended them; None if it does not end.
        """
        due = {lease for lease, seconds in self._engine.paused() if seconds > max(PAUSED_S, self._checkpoints.seconds)}
        if deadline is not None:
            due |= {*self._late.worth_parking(deadline)}
        with self._lock:
            paused, self._paused = self._paused, set()
        if paused:
            due |= {lease for lease in self._late.worth_parking() if lease.batch in paused}
            self._returns.release(lease for lease in self._late.not_begun() if lease.batch in paused)
        self.park(cast("set[Lease]", due))

    def park(self, leases: Collection[Lease]) -> None:
        """Take images out of the engine and let their checkpoints be stored. Those that are decoded stay."""
        parked = self._engine.park(leases) if leases else []
        if not parked:
            return
        log.info("%d images are put down midway", len(parked))
        self._backlog.enter_parked(len(parked))
        for each in parked:
            lease = cast("Lease", each.handle)
            self._pool.submit(self._store, lease, each.checkpoint, on_error=partial(self._give_back, lease))

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    # -- on the threads --------------------------------------------------------------------------------------

    def _store(self, lease: Lease, checkpoint: ImageCheckpoint) -> None:
        """Store a checkpoint, and report those that are stored by now."""
        if not self._leases.holds(lease):
            self._backlog.leave(1)
            return
        outcome = self._retries.repeat(
            "put", lambda: self._checkpoints.put(lease, checkpoint), lease=lease, pool=self._pool
        )
        if isinstance(outcome, Done):
            with self._lock:
                self._stored.append(lease)
            with self._recording:
                self._record()
            return
        self._metrics.evaluations("lost", checkpoint.evaluations)
        if isinstance(outcome, Broken):
            self._failures.give_back(lease)
        else:
            log_abandoned([lease], outcome, "not parked")
        self._backlog.leave(1)

    def _record(self) -> None:
        """Report the jobs whose checkpoints are stored, unless another thread has."""
        with self._lock:
            leases, self._stored = self._stored, []
        if not leases:
            return
        outcome = self._retries.repeat("park", lambda: self._ledger.park(leases), pool=self._pool)
        if isinstance(outcome, Abandoned):
            log_abandoned(leases, outcome, "put down, but not parked")
        elif isinstance(outcome, Broken):
            for lease in leases:
                self._failures.give_back(lease)
        else:
            with self._pool.guard():
                self._on_parked(leases, outcome.value)
        self._backlog.leave(len(leases))

    def _on_parked(self, leases: list[Lease], parked: int) -> None:
        for lease in leases:
            self._leases.drop(lease)
        self._metrics.checkpoint("parked", parked)
        self._metrics.leased("returned", parked)
        log.info("parked %d jobs", parked)
        # of a lost lease, another worker may go on from the earlier checkpoint
        if parked == len(leases) and (keys := outdated_keys(leases)):
            self._hooks.delete_objects(keys)
        self._hooks.notify_workers()

    def _give_back(self, lease: Lease, _error: Exception) -> None:
        self._backlog.leave(1)
        self._failures.give_back(lease)
