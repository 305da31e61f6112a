"""Renew the leases of a worker on a thread of its own, and record those that are lost."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from threading import Lock

from latentfarm.errors import UnavailableError
from latentfarm.ledger import Lease, Ledger
from latentfarm.monitoring.logs import log_fields
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.threads import Threads

log = logging.getLogger(__name__)

#: renewals within the time of one lease, so that some may fail
_RENEWALS_PER_LEASE = 6
#: seconds to wait at the end for a call to Redis that hangs
_CLOSE_S = 1.0


class LeaseRenewer:
    """Hold the worker's leases and renew each of them six times within ``lease_ttl_s`` seconds. Thread-safe."""

    def __init__(self, ledger: Ledger, *, lease_ttl_s: float, metrics: Metrics, threads: Threads) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._lease_ttl_s = lease_ttl_s
        self._held: set[Lease] = set()
        self._lost: set[Lease] = set()
        self._lock = Lock()
        self._renewals = threads.loop("leases", self._renew, interval_s=lease_ttl_s / _RENEWALS_PER_LEASE)

    def hold(self, leases: Iterable[Lease]) -> None:
        """Renew these leases from now on.

        If this worker holds an older lease on one of the jobs, that one has expired, so it is recorded as lost.
        """
        leases = set(leases)
        names = {lease.name for lease in leases}
        self._metrics.leased("taken", len(leases))
        with self._lock:
            superseded = {lease for lease in self._held - leases if lease.name in names}
            self._held = (self._held | leases) - superseded
            self._lost |= superseded

    def holds(self, lease: Lease) -> bool:
        """Return whether this very lease is held; a later lease on the same job is another one."""
        with self._lock:
            return lease in self._held

    def drop(self, lease: Lease) -> None:
        """Stop renewing the lease of a job that has ended."""
        with self._lock:
            self._held.discard(lease)

    def withdraw(self, leases: Iterable[Lease]) -> set[Lease]:
        """Stop renewing these leases and report them as lost to the render loop; return those that were held."""
        with self._lock:
            withdrawn = self._held.intersection(leases)
            self._held -= withdrawn
            self._lost |= withdrawn
        return withdrawn

    def take_lost(self) -> set[Lease]:
        """Return the leases that were lost since the last call; stop rendering their jobs."""
        with self._lock:
            lost, self._lost = self._lost, set()
        return lost

    def check_batch(self, batch: str) -> None:
        """Renew now if a lease is on a job of this batch: if it was cancelled, its leases are found lost."""
        if any(lease.batch == batch for lease in self.held()):
            self._renewals.wake()

    def held(self) -> set[Lease]:
        with self._lock:
            return set(self._held)

    def close(self) -> None:
        """Renew no more."""
        self._renewals.stop(_CLOSE_S)

    def _renew(self) -> None:
        held = self.held()
        if not held:
            return
        try:
            names = self._ledger.renew(held, lease_s=self._lease_ttl_s)
        except UnavailableError as error:
            self._metrics.retry("renew", error)
            raise
        with self._lock:
            # a job that was committed during the call is no longer held, so it is not lost
            lost = {lease for lease in held & self._held if lease.name in names}
            self._held -= lost
            self._lost |= lost
        self._metrics.leased("lost", len(lost))
        for lease in lost:
            # clients hang up all the time
            log.log(
                logging.INFO if lease.interactive else logging.WARNING,
                "the lease on %s is lost: the job runs on another worker, or its batch was cancelled",
                lease.name,
                extra=log_fields(lease.name),
            )
