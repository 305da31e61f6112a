"""Record in the ledger that a job failed by its own fault, off the engine's thread."""

from __future__ import annotations

import logging

from latentfarm.errors import JobError
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import FailOutcome
from latentfarm.monitoring.logs import log_fields
from latentfarm_worker.service.checkpoints import outdated_keys
from latentfarm_worker.service.hooks import UploadHooks
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.metrics import Metrics, Outcome
from latentfarm_worker.service.retries import Abandoned, Broken, Retries, log_abandoned, printable
from latentfarm_worker.service.threads import Pool

log = logging.getLogger(__name__)

#: answers of the ledger for a lease that is no longer held
LOST = frozenset({"stale", "deleting"})
_FAILURES: dict[FailOutcome, Outcome] = {"failed": "failed", "full": "failed", "retry": "retried", "stale": "lost"}


class JobFailures:
    """Records failures, and releases jobs whose end cannot be recorded. Thread-safe.

    Args:
        ledger: the ledger.
        leases: the leases of the jobs.
        hooks: what follows from an outcome.
        metrics: counts outcomes.
        retries: repeats requests to the ledger.
        pool: the threads of ``submit``, which count unexpected exceptions.
        worker: name of the worker in the ledger.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        leases: LeaseRenewer,
        hooks: UploadHooks,
        metrics: Metrics,
        retries: Retries,
        pool: Pool,
        worker: str,
    ) -> None:
        self._ledger = ledger
        self._leases = leases
        self._hooks = hooks
        self._metrics = metrics
        self._retries = retries
        self._pool = pool
        self._worker = worker

    def submit(self, lease: Lease, error: JobError, *, retry: bool = False) -> None:
        """Record a failure soon, on another thread. If ``retry``, the job may run again."""
        self._pool.submit(self._record, lease, error, retry, on_error=lambda _: self.give_back(lease))

    def record(self, lease: Lease, error: JobError, *, retry: bool) -> None:
        """Record a failure now, and repeat it as long as the lease is held."""
        self._record(lease, error, retry)

    def _record(self, lease: Lease, error: JobError, retry: bool) -> None:  # noqa: FBT001 - the pool passes no names
        message = printable(str(error))
        log.warning("%s failed: %s: %s", lease.name, error.code, message, extra=log_fields(lease.name))
        record = {"code": error.code, "message": message, "worker": self._worker}
        outcome = self._retries.repeat(
            "fail", lambda: self._ledger.fail(lease, record, retry=retry), lease=lease, pool=self._pool
        )
        if isinstance(outcome, Broken):
            self.give_back(lease)
        elif isinstance(outcome, Abandoned):
            log_abandoned([lease], outcome, "failed, but not recorded")
        else:
            self._leases.drop(lease)
            self._metrics.ended(_FAILURES[outcome.value])
            self.on_outcome(lease, outcome.value)
            if outcome.value not in LOST and (keys := outdated_keys([lease])):
                # the checkpoint may be the cause: the ledger has forgotten it
                self._hooks.delete_objects(keys)

    def give_back(self, lease: Lease) -> None:
        """Release a job uncharged whose end cannot be recorded."""
        if not self._leases.holds(lease):
            return
        outcome = self._retries.repeat("release", lambda: self._ledger.release([lease]), lease=lease, pool=self._pool)
        if outcome is not Abandoned.STOPPED:
            # if even this failed, the lease expires
            self._leases.drop(lease)

    def on_outcome(self, lease: Lease, outcome: str) -> None:
        """Handle what the ledger has answered about the end of a job."""
        if outcome in LOST:
            log.warning(
                "%s ended after its lease was lost; the ledger keeps the other result",
                lease.name,
                extra=log_fields(lease.name),
            )
        if outcome == "full":
            self._hooks.on_full_part()
