"""Give jobs back to the ledger that are not rendered here: released uncharged, or as the suspects of a crash."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from latentfarm.errors import UnavailableError
from latentfarm.ledger import Lease, Ledger
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.metrics import Metrics

log = logging.getLogger(__name__)


class LeaseReturns:
    """Ends leases that are still held; others are ignored. It never raises. Thread-safe.

    If the ledger cannot be reached, the leases are not renewed any more, and expire.

    Args:
        ledger: the ledger.
        leases: the leases of the worker.
        metrics: counts the jobs.
        notify_workers: called when other workers can lease the jobs.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        leases: LeaseRenewer,
        metrics: Metrics,
        notify_workers: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._leases = leases
        self._metrics = metrics
        self._notify_workers = notify_workers

    def release(self, leases: Iterable[Lease]) -> None:
        """Release jobs uncharged."""
        self._end(leases, self._ledger.release, "released %d unfinished jobs")

    def record_crash(self, leases: Iterable[Lease]) -> None:
        """Record that the device was lost in a call for these jobs: each runs alone next."""

        def record(withdrawn: set[Lease]) -> int:
            return len(self._ledger.record_crash(withdrawn))

        self._end(leases, record, "the device was lost in a call for %d jobs, which run alone next")

    def _end(self, leases: Iterable[Lease], end: Callable[[set[Lease]], int], message: str) -> None:
        withdrawn = self._leases.withdraw(leases)
        if not withdrawn:
            return
        try:
            ended = end(withdrawn)
            log.info(message, ended)
            self._metrics.leased("returned", ended)
            self._notify_workers()
        except UnavailableError as error:
            self._metrics.retry("release", error)
            log.warning("%d jobs could not be returned, their leases will expire: %s", len(withdrawn), error)
        except Exception:
            log.exception("%d jobs could not be returned, their leases will expire", len(withdrawn))
