"""Keeping leases: a thread that renews them while the GPU works, and takes note of those that are lost.

The same thread listens for cancelled batches, so that their jobs stop at the next step, not at the next renewal.
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

#: renewals within one lease, so that a few may fail
_RENEWALS_PER_LEASE = 6
#: seconds between two looks at whether to stop, and the pause after Redis did not answer
_LISTEN_S = 0.25


class LeaseRenewer:
    """The leases that this worker holds, renewed every sixth of their length by a thread of its own."""

    def __init__(self, ledger: Ledger, *, lease_s: float, metrics: Metrics) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._lease_s = lease_s
        self._interval_s = lease_s / _RENEWALS_PER_LEASE
        self._held: dict[str, Lease] = {}
        self._lost: set[str] = set()
        self._lock = Lock()
        self._stop = Event()
        self._thread = Thread(target=self._renew_for_ever, name="leases", daemon=True)
        self._thread.start()

    def hold(self, leases: Iterable[Lease]) -> None:
        """Begin to renew these."""
        leases = list(leases)
        self._metrics.leased("taken", len(leases))
        with self._lock:
            self._held.update((lease.name, lease) for lease in leases)

    def get(self, name: str) -> Lease | None:
        """Return the lease on a job, or None once it is lost."""
        with self._lock:
            return self._held.get(name)

    def holds(self, lease: Lease) -> bool:
        """Return whether this very lease is still held: the same job may have come back under a later one."""
        return self.get(lease.name) == lease

    def drop(self, lease: Lease) -> None:
        """Stop renewing: the job is committed, failed or given back."""
        with self._lock:
            if self._held.get(lease.name) == lease:
                del self._held[lease.name]

    def give_up(self, names: Iterable[str]) -> list[Lease]:
        """Stop renewing these jobs, of which the engine hears as of lost ones; return the leases that were held."""
        with self._lock:
            leases = [self._held.pop(name) for name in names if name in self._held]
            self._lost |= {lease.name for lease in leases}
        return leases

    def take_lost(self) -> set[str]:
        """Return the jobs that went to somebody else since the last call; rendering them on would be in vain."""
        with self._lock:
            lost, self._lost = self._lost, set()
        return lost

    def held(self) -> list[Lease]:
        """Return every lease that is still held."""
        with self._lock:
            return list(self._held.values())

    def close(self) -> None:
        """Stop renewing everything."""
        self._stop.set()
        self._thread.join()

    def _renew_for_ever(self) -> None:
        with self._ledger.cancellations() as cancellations:
            due = time.monotonic() + self._interval_s
            while not self._stop.is_set():
                cancelled = self._listen(cancellations)
                if time.monotonic() < due and not (cancelled and self._holds_any_of(cancelled)):
                    continue
                self._renew()
                due = time.monotonic() + self._interval_s

    def _listen(self, cancellations: Cancellations) -> str | None:
        """Return the batch that was cancelled just now, if one was."""
        try:
            return cancellations.wait(_LISTEN_S)
        except UnavailableError:
            # renewing tells of it; a cancellation that is missed here shows there as a lost lease
            self._stop.wait(_LISTEN_S)
            return None

    def _holds_any_of(self, batch: str) -> bool:
        return any(lease.batch == batch for lease in self.held())

    def _renew(self) -> None:
        held = self.held()
        if not held:
            return
        try:
            lost = self._ledger.renew(held, lease_s=self._lease_s)
        except UnavailableError as error:
            log.warning("leases were not renewed, trying again: %s", error)
            return
        # a job committed a moment ago, between the question and the answer, is not lost
        epochs = {lease.name: lease.epoch for lease in held}
        with self._lock:
            gone = {n for n in lost if n in self._held and self._held[n].epoch == epochs[n]}
            self._lost |= gone
            for name in gone:
                del self._held[name]
        self._metrics.leased("lost", len(gone))
        for name in gone:
            log.warning(
                "the lease on %s is lost; it runs elsewhere, or its batch was cancelled", name, extra=log_fields(name)
            )
