"""Commit images that are in the bucket, many in one call, on a thread of their own.

One Redis serves the whole farm, so a worker commits once a second at most, and each commit records all images that
were stored since the last one. Images that end together are committed together, once the last of them is stored. A
slower worker may save up to four commits, so that its images are committed at once. So is an image for which a client
waits.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from threading import Event
from typing import Any

from latentfarm.errors import JobError
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import CommitOutcome
from latentfarm_worker.service.backlog import Backlog
from latentfarm_worker.service.checkpoints import outdated_keys
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.job_failures import LOST, JobFailures
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.recent_seconds import RecentSeconds
from latentfarm_worker.service.retries import Abandoned, Done, Retries, log_abandoned
from latentfarm_worker.service.threads import Threads

#: seconds between commits in the long run, and how much earlier one commit may be (GCRA, ITU-T I.371)
_COMMIT_EVERY_S, _COMMIT_EARLY_S = 1.0, 3.0
#: how long a commit waits for other images that are being stored
_GATHER_S = 0.5
_MAX_COMMITS_PER_CALL = 1000


@dataclass(frozen=True)
class Stored:
    """An image or a draft in the bucket that waits for its commit.

    Attributes:
        lease: its lease.
        receipt: its receipt.
        pixels: of the image.
        compute_cost: of what was made of it under this lease, as ``Job.compute_cost``.
        began: when its pixels came, ``time.perf_counter()``.
    """

    lease: Lease
    receipt: dict[str, Any]
    pixels: int
    compute_cost: float
    began: float


class Commits:
    """Commits images when the next commit is due. Thread-safe.

    Args:
        ledger: the ledger to commit to.
        leases: the leases of the images.
        backlog: counts the images until they are committed.
        failures: records what cannot be committed.
        hooks: counts the commits, and what follows from one.
        metrics: counts outcomes.
        retries: repeats requests to the ledger.
        stopping: set when nothing is waited for any more.
        threads: starts the thread.
    """

    def __init__(  # noqa: PLR0913 (all are collaborators, passed by name)
        self,
        *,
        ledger: Ledger,
        leases: LeaseRenewer,
        backlog: Backlog,
        failures: JobFailures,
        hooks: WorkerHooks,
        metrics: Metrics,
        retries: Retries,
        stopping: Event,
        threads: Threads,
    ) -> None:
        self._ledger = ledger
        self._leases = leases
        self._backlog = backlog
        self._failures = failures
        self._hooks = hooks
        self._metrics = metrics
        self._retries = retries
        self._stopping = stopping
        self._committer = threads.pool("commit", 1)
        self._stored: deque[Stored] = deque()
        #: of them those that a client waits for
        self._interactive_stored = 0
        self._due = 0.0
        self._latencies = RecentSeconds()

    @property
    def median_latency_s(self) -> float:
        """Median seconds from an image's pixels to its commit; 0 before the first."""
        return self._latencies.median or 0.0

    def add(self, stored: Stored) -> None:
        """Let an image wait for the next commit; ``submit`` must follow."""
        with self._backlog.changed:
            self._interactive_stored += stored.lease.interactive
        self._stored.append(stored)

    def submit(self) -> None:
        """Commit soon. It is called once for each image that was added."""
        self._committer.submit(self._commit)

    def close(self) -> None:
        """End the thread."""
        self._committer.close()

    def _commit(self) -> None:
        """Commit all images that are stored when the next commit is due."""
        if not self._stored:
            return
        self._wait()
        stored = [self._stored.popleft() for _ in range(min(len(self._stored), _MAX_COMMITS_PER_CALL))]
        with self._backlog.changed:
            self._interactive_stored -= sum(each.lease.interactive for each in stored)
        try:
            self._commit_together(stored)
        except Exception as error:  # noqa: BLE001 - the leases must end after any
            self._committer.report(error)
            for each in stored:
                self._failures.give_back(each.lease)
        finally:
            self._backlog.leave(len(stored))

    def _wait(self) -> None:
        """Wait until a commit is due, and for images that are being stored; not if a client waits for a stored one."""
        changed = self._backlog.changed
        with changed:
            changed.wait_for(self._must_commit, max(0.0, self._due - _COMMIT_EARLY_S - time.monotonic()))
            # images of one step end together: else the first ones would use up the commits, and the last would wait
            changed.wait_for(lambda: self._must_commit() or not self._backlog.storing, _GATHER_S)
            if not self._interactive_stored:
                self._due = max(self._due, time.monotonic()) + _COMMIT_EVERY_S

    def _must_commit(self) -> bool:
        return self._stopping.is_set() or self._interactive_stored > 0

    def _commit_together(self, stored: list[Stored]) -> None:
        finished = [(each.lease, each.receipt) for each in stored]

        def commit() -> list[tuple[Stored, CommitOutcome]]:
            return list(zip(stored, self._ledger.commit(finished), strict=True))

        # also images whose lease is lost: the ledger decides, and the answer to an earlier try may have been lost
        outcome = self._retries.repeat("commit", commit, pool=self._committer)
        if isinstance(outcome, Abandoned):
            log_abandoned([each.lease for each in stored], outcome, "stored, but not committed")
        elif isinstance(outcome, Done):
            for each, commit_outcome in outcome.value:
                self._leases.drop(each.lease)
                with self._committer.guard():
                    self._on_committed(each, commit_outcome)
        elif len(stored) > 1:
            # one image may be the cause: the others are committed without it
            for each in stored:
                self._commit_together([each])
        else:
            self._failures.record(stored[0].lease, JobError.unexpected("commit_error", outcome.error), retry=True)

    def _on_committed(self, stored: Stored, outcome: CommitOutcome) -> None:
        receipt = stored.receipt
        draft = receipt.get("draft")
        if outcome in LOST:
            self._metrics.ended("lost")
        else:
            self._hooks.state.commit()
            self._latencies.add(time.perf_counter() - stored.began)
            self._metrics.committed(
                size_bytes=receipt["bytes"],
                pixels=stored.pixels,
                compute_cost=stored.compute_cost,
                timings=receipt["timings"],
                drafted=draft is not None,
            )
            # what the job went on from
            self._delete(outdated_keys([stored.lease]))
        self._failures.on_outcome(stored.lease, outcome)
        if outcome == "deleting":
            # the deletion may have listed the bucket before these were stored
            others = (receipt.get("intermediates"), draft and draft["checkpoint"])
            self._delete([receipt["key"], *(each["key"] for each in others if each)])

    def _delete(self, keys: list[str]) -> None:
        if keys:
            self._hooks.delete_objects(keys)
