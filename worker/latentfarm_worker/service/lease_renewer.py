"""Renew the leases of a worker on a thread of its own, and record those that are lost.

The same thread listens for cancelled batches, so that their jobs stop at the next step and not at the next renewal.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from threading import Event, Lock, Thread

from latentfarm.errors import UnavailableError
from latentfarm.ledger import Cancellations, Lease, Ledger
from latentfarm.monitoring.logs import log_fields
from latentfarm_worker.service.metrics import Metrics

log = logging.getLogger(__name__)

#: renewals within the time of one lease, so that some may fail
_RENEWALS_PER_LEASE = 6
#: seconds between two checks of the stop event, and the pause if Redis is unavailable
_LISTEN_S = 0.25


class LeaseRenewer:
    """Hold the worker's leases and renew each of them six times within ``lease_ttl_s`` seconds. Thread-safe."""

    def __init__(self, ledger: Ledger, *, lease_ttl_s: float, metrics: Metrics) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._lease_ttl_s = lease_ttl_s
        self._interval_s = lease_ttl_s / _RENEWALS_PER_LEASE
        self._held: set[Lease] = set()
        self._lost: set[Lease] = set()
        self._lock = Lock()
        self._stop = Event()
        self._thread = Thread(target=self._renewal_loop, name="leases", daemon=True)
        self._thread.start()

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

    def held(self) -> set[Lease]:
        with self._lock:
            return set(self._held)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _renewal_loop(self) -> None:
        with self._ledger.cancellations() as cancellations:
            due = time.monotonic() + self._interval_s
            while not self._stop.is_set():
                cancelled = self._next_cancelled(cancellations)
                if time.monotonic() < due and not any(lease.batch == cancelled for lease in self.held()):
                    continue
                self._renew()
                due = time.monotonic() + self._interval_s

    def _next_cancelled(self, cancellations: Cancellations) -> str | None:
        """Return the name of a batch that was cancelled just now, or None."""
        try:
            return cancellations.wait(_LISTEN_S)
        except UnavailableError:
            # not logged: the next renewal reports the outage, and a missed cancellation shows there as a lost lease
            self._stop.wait(_LISTEN_S)
            return None

    def _renew(self) -> None:
        held = self.held()
        if not held:
            return
        try:
            names = self._ledger.renew(held, lease_s=self._lease_ttl_s)
        except UnavailableError as error:
            log.warning("leases were not renewed, retrying: %s", error)
            return
        with self._lock:
            # a job that was committed during the call is no longer held, so it is not lost
            lost = {lease for lease in held & self._held if lease.name in names}
            self._held -= lost
            self._lost |= lost
        self._metrics.leased("lost", len(lost))
        for lease in lost:
            log.warning(
                "the lease on %s is lost: the job runs on another worker, or its batch was cancelled",
                lease.name,
                extra=log_fields(lease.name),
            )
