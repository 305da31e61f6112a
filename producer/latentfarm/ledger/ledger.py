"""The ledger: one method a script."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState, PausedBy
from latentfarm.errors import ConflictError
from latentfarm.ledger.chosen_models import ChosenModels
from latentfarm.ledger.constants import DEFAULT_BUDGET, MAX_JOBS_PER_CALL
from latentfarm.ledger.events import Events
from latentfarm.ledger.flush_queue import DELETION_HOLD_S, FlushQueue
from latentfarm.ledger.lua_scripts import Script
from latentfarm.ledger.queries import Queries, known_state
from latentfarm.ledger.records import (
    CommitOutcome,
    CrashOutcome,
    FailOutcome,
    Lease,
    Reservation,
    account_of,
    decode,
    error_text,
    is_truncated,
    leases_of,
    receipt_text,
)
from latentfarm.ledger.redis_errors import translate_errors
from latentfarm.ledger.submission_queue import SubmissionQueue
from latentfarm.ledger.workers import WorkerRegistry

_EXPIRE_LIMIT = 1_000
#: leases in one step of a scan
_SCAN_COUNT = 1_000
#: milliseconds during which no other worker expires leases
_SWEEP_LOCK_MS = 250


class Ledger(Queries, FlushQueue, WorkerRegistry, Events, SubmissionQueue, ChosenModels):
    """The Redis record of every batch and job.

    Thread-safe. Every method raises ``UnavailableError`` if Redis is unavailable, and ``SchemaError`` if another
    version of latentfarm wrote the ledger. Methods that take a batch raise ``NotFoundError`` if it is unknown.
    """

    # -- batches ---------------------------------------------------------------------------------------------

    def create_batch(  # noqa: PLR0913 - all are facts of the batch, passed by name
        self,
        batch: str,
        *,
        digest: str,
        model: str,
        priority: int = 0,
        weight: int = 1,
        budget: float = DEFAULT_BUDGET,
        canary: int = 0,
        webhook: str = "",
        kind: BatchKind = BatchKind.SUBMITTED,
        owner: str = "",
        keep_s: int = 0,
        preempt: bool = False,
    ) -> Reservation:
        """Reserve a name, or find the batch that has it.

        Args:
            batch: the name.
            digest: digest of the submission; two submissions of one name differ in it.
            model: alias of the model.
            priority: a higher priority is leased first.
            weight: share among batches of one priority.
            budget: share of failures that pauses the batch; 0 for none.
            canary: jobs from this index on wait for ``resume``; 0 for none.
            webhook: URL to notify when the batch ends, or empty.
            kind: what the batch is submitted for.
            owner: name of the API key that submits it, empty for none.
            keep_s: seconds after which ``claim_expired`` returns it, in any state; 0 for never.
            preempt: its jobs are urgent, as those of interactive batches are.
        """
        account = account_of(kind, owner)
        options = (priority, weight, budget, canary, webhook, account, keep_s * 1000, int(preempt))
        holder, state, stored, parts_digest = self.run(self.scripts.create_batch, batch, digest, model, *options)
        return Reservation(
            digest=decode(holder),
            state=BatchState(decode(state)),
            stored=int(stored),
            parts_digest=decode(parts_digest),
        )

    def append_jobs(
        self,
        batch: str,
        *,
        before: int,
        total: int,
        parts_digest: str,
        closed: bool,
        invalid: Mapping[int, dict[str, str]] | None = None,
    ) -> BatchState | Literal["conflict"]:
        """Let workers lease the jobs ``before`` to ``total - 1``, whose part is stored; return the state.

        Args:
            batch: the name.
            before: jobs that were stored before.
            total: jobs that are stored now.
            parts_digest: digest of all parts up to this one.
            closed: no more jobs follow.
            invalid: errors of those jobs whose row is invalid; they fail at once.

        ``conflict``: another submission of the batch has appended other jobs.
        """
        args: list[Any] = [before, total, parts_digest, int(closed)]
        for index, error in (invalid or {}).items():
            args += [index, error_text(error)]
        state = decode(self.run(self.scripts.append_jobs, batch, *args))
        return "conflict" if state == "conflict" else known_state(batch, state)

    def pause(self, batch: str, by: PausedBy, reason: str = "", *, now: bool = False) -> BatchState:
        """Lease no more jobs of the batch; return its state. A pause that exists stays as it is.

        ``now``: signal to workers to park its running images, instead of rendering them to their end.
        """
        return self._change(batch, self.scripts.pause, by, reason, int(now))

    def resume(self, batch: str) -> BatchState:
        """End a pause or a canary; return the state."""
        return self._change(batch, self.scripts.resume)

    def cancel(self, batch: str) -> BatchState:
        """End the batch: every lease on it is lost, pending and drafted jobs are cancelled; return the state before."""
        return self._change(batch, self.scripts.cancel)

    def set_priority(self, batch: str, priority: int) -> BatchState:
        """Set the priority, from the next lease on; return the state."""
        return self._change(batch, self.scripts.set_priority, priority)

    def retry(self, batch: str, failed: Sequence[tuple[int, str]]) -> int:
        """Let failed jobs run again, at most 1,000, given as (index, error code); return how many do.

        Raises:
            ConflictError: the batch is cancelled or being deleted.
        """
        retried = int(self.run(self.scripts.retry, batch, *(field for job in failed for field in job)))
        if retried < 0:
            raise ConflictError(f"batch {batch!r} is {self.batch(batch).state}; its jobs cannot run again")
        return retried

    def finish(self, batch: str, indices: Sequence[int]) -> int:
        """Let drafted jobs, at most 1,000, be rendered to their end from their checkpoints; return how many are.

        Jobs that are not drafted are ignored.

        Raises:
            ConflictError: the batch is cancelled or being deleted.
        """
        finished = int(self.run(self.scripts.finish, batch, *indices))
        if finished < 0:
            raise ConflictError(f"batch {batch!r} is {self.batch(batch).state}; its drafts cannot be finished")
        return finished

    def discard(self, batch: str, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Cancel drafted jobs, at most 1,000; return the index of each and the epoch of its checkpoint.

        Jobs that are not drafted are ignored. The checkpoints and previews are to be deleted from the bucket.

        Raises:
            ConflictError: the batch is being rebuilt.
        """
        found = self.run(self.scripts.discard, batch, *indices)
        if found == -1:
            raise ConflictError(f"batch {batch!r} is {self.batch(batch).state}; discard its drafts when that has ended")
        return list(zip(found[::2], found[1::2], strict=True))

    def mark_deleting(self, batch: str) -> None:
        """End all work on a batch whose objects are about to be deleted, and claim its deletion."""
        self.cancel(batch)
        self._change(batch, self.scripts.mark_deleting, DELETION_HOLD_S * 1000)

    def delete_batch(self, batch: str) -> None:
        """Remove every key of a batch whose objects are deleted. An unknown batch is ignored."""
        self.run(self.scripts.delete_batch, batch)

    def _change(self, batch: str, script: Script, *args: Any) -> BatchState:
        return known_state(batch, decode(self.run(script, batch, *args)))

    # -- jobs ------------------------------------------------------------------------------------------------

    def lease(
        self,
        model: str,
        worker: str,
        k: int,
        *,
        lease_s: float,
        request: str = "",
        alone: bool = True,
        urgent: bool = False,
    ) -> list[Lease]:
        """Lease up to ``k`` jobs of a model, at most 1,000.

        Args:
            model: alias of the model.
            worker: name of the holder.
            k: how many jobs.
            lease_s: how long the leases last, in seconds.
            request: an id without a newline, unique among all calls of this worker. If the reply of a call was lost,
                call again with its id: the leases of the first call that are still held are returned, for any ``k``.
                Empty: every call leases other jobs.
            alone: whether one of the jobs may be one that runs alone.
            urgent: only jobs of urgent batches: interactive ones, and those that were created with ``preempt``.
        """
        k = min(k, MAX_JOBS_PER_CALL)
        flags = int(alone), int(urgent)
        found = self.run(self.scripts.lease, model, worker, k, int(lease_s * 1000), request, *flags)
        return [lease for run in found for lease in leases_of(run)]

    def renew(self, leases: Iterable[Lease], *, lease_s: float) -> set[str]:
        """Extend leases to ``lease_s`` seconds from now; return the job names of the leases that are lost."""
        return {decode(name) for name in self.run(self.scripts.renew, int(lease_s * 1000), *_names(leases))}

    def commit(self, finished: Sequence[tuple[Lease, dict[str, Any]]]) -> list[CommitOutcome]:
        """Record 1 to 1,000 images that are stored in the bucket, with their receipts; return each one's outcome.

        An image is a draft if its receipt has ``draft``; its checkpoint is that of the lease's epoch.

        ``stale``: the lease was lost; another image of the job counts. ``deleting``: the batch is being deleted.
        """
        args: list[Any] = []
        for lease, receipt in finished:
            stored = receipt_text({**receipt, "epoch": lease.epoch})
            args += [lease.name, lease.epoch, stored, _kind_of(receipt)]
        return [cast("CommitOutcome", decode(outcome)) for outcome in self.run(self.scripts.commit, *args)]

    def fail(
        self, lease: Lease, error: dict[str, str], *, retry: bool = False, delay_s: float | None = None
    ) -> FailOutcome:
        """Charge the job an attempt for its own error.

        With ``retry``, the job runs again, alone, after ``delay_s`` seconds [default: 1, and twice as many each time],
        up to ``MAX_ATTEMPTS``.
        """
        delay_ms = "" if delay_s is None else int(delay_s * 1000)
        args = (lease.name, lease.epoch, error_text(error), int(retry), delay_ms)
        return cast("FailOutcome", decode(self.run(self.scripts.fail, *args)))

    def release(self, leases: Iterable[Lease]) -> int:
        """Requeue jobs without a charge; return how many were still held.

        The next lease goes on from the checkpoint from which this one did, if there is one.
        """
        return self._requeue(leases, parked=False)

    def park(self, parked: Sequence[Lease]) -> int:
        """Requeue jobs without a charge, whose checkpoints are stored; return how many were still held.

        The next lease goes on from there.
        """
        return self._requeue(parked, parked=True)

    def _requeue(self, leases: Iterable[Lease], *, parked: bool) -> int:
        args = _names(leases)
        return int(self.run(self.scripts.release, int(parked), *args)) if args else 0

    def record_crash(self, leases: Iterable[Lease]) -> list[CrashOutcome]:
        """Record that a worker lost its device in a call for these jobs; return an outcome for each.

        Nothing is charged. Each job runs alone next, and fails at its third crash.
        """
        args = _names(leases)
        return [cast("CrashOutcome", decode(found)) for found in self.run(self.scripts.crash, *args)] if args else []

    def end_worker(self, worker: str, at_risk: Collection[tuple[str, int]]) -> tuple[int, int]:
        """End every lease of a worker whose process died; return how many jobs were released, and how many crashed.

        Args:
            worker: name of the worker.
            at_risk: name and epoch of the jobs in the call of the device in which it died. They count as crashed; the
                others are released uncharged.
        """
        held = self._held_by(worker)
        crashed = {lease for lease in held if (lease.name, lease.epoch) in at_risk}
        self.record_crash(crashed)
        return self.release(held - crashed), len(crashed)

    def _held_by(self, worker: str) -> set[Lease]:
        """Return the leases of a worker that leases nothing meanwhile; their attempts are not read.

        All leases of the farm are scanned, a few at a time: one script over 100,000 leases blocks Redis for 0.8 s.
        """
        wanted = worker.encode()
        with translate_errors(self.where):
            found = [
                (decode(name).rpartition("/"), int(epoch))
                for name, holder in self.redis.hscan_iter("{lf}:holders", count=_SCAN_COUNT)
                for epoch, _, holder_name in [holder.partition(b" ")]
                if holder_name == wanted
            ]
        return {Lease(batch, int(index), epoch, attempts=0) for (batch, _, index), epoch in found}

    def expire_leases(self, *, patience_s: float = 10) -> int:
        """End the leases that were not renewed in time, and record the loss of each job; return how many.

        Return -1 if another worker is at it. If no worker called this for ``patience_s`` seconds, Redis or the whole
        farm was down and no lease could be renewed: then no lease expires for as long again.
        """
        return int(self.run(self.scripts.expire_leases, _EXPIRE_LIMIT, _SWEEP_LOCK_MS, int(patience_s * 1000)))


def _kind_of(receipt: Mapping[str, Any]) -> int:
    """Return the kind of an image for the script that commits it."""
    return 2 if "draft" in receipt else int(is_truncated(receipt))


def _names(leases: Iterable[Lease]) -> list[Any]:
    return [field for lease in leases for field in (lease.name, lease.epoch)]
