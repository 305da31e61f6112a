"""What a render loop stands on: its leases, jobs, uploads, parking and reports, each made with those that it needs."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition

from latentfarm.ledger import Ledger
from latentfarm.storage.bucket import Bucket
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.service.checkpoints import Checkpoints
from latentfarm_worker.service.device_faults import DeviceFaults
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.image_review import ImageReview
from latentfarm_worker.service.job_supply import JobSupply
from latentfarm_worker.service.late_jobs import LateJobs
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.lease_requests import LeaseRequests
from latentfarm_worker.service.lease_returns import LeaseReturns
from latentfarm_worker.service.live_reporter import LiveReporter
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.parking import Parking
from latentfarm_worker.service.slot_reporter import SlotReporter
from latentfarm_worker.service.threads import Threads
from latentfarm_worker.service.uploader import Uploader


class LoopParts:
    """The parts of a ``RenderLoop``, whose arguments these are, too.

    Args:
        changed: notified when a round of leasing ends or the backlog shrinks.
        abandon_device: called when the device is lost.

    Attributes:
        leases: renews the leases.
        returns: gives jobs back.
        uploader: stores and commits images.
        faults: handles errors of the device.
        supply: leases and prepares jobs.
        late: estimates how long images still take.
        parking: puts images down.
        live, slots: report what clients watch.
    """

    def __init__(  # noqa: PLR0913 (all are collaborators or settings, passed by name)
        self,
        *,
        ledger: Ledger,
        bucket: Bucket,
        engine: Engine,
        model: str,
        worker: str,
        lease_ttl_s: float,
        embed_metadata: bool,
        max_backlog: int,
        review: ImageReview,
        hooks: WorkerHooks,
        metrics: Metrics,
        threads: Threads,
        changed: Condition,
        abandon_device: Callable[[], None],
    ) -> None:
        self._ledger, self._bucket, self._engine = ledger, bucket, engine
        self._hooks, self._metrics, self._threads = hooks, metrics, threads
        self.leases = LeaseRenewer(ledger, lease_ttl_s=lease_ttl_s, metrics=metrics, threads=threads)
        self.returns = LeaseReturns(
            ledger=ledger, leases=self.leases, metrics=metrics, notify_workers=hooks.notify_workers
        )
        self._checkpoints = Checkpoints(bucket, metrics)
        self.uploader = Uploader(
            ledger=ledger,
            bucket=bucket,
            leases=self.leases,
            changed=changed,
            hooks=hooks,
            encoder=ImageFileEncoder(engine, model=model, embed_metadata=embed_metadata),
            checkpoints=self._checkpoints,
            review=review,
            metrics=metrics,
            threads=threads,
            worker=worker,
        )
        self.live = LiveReporter(ledger=ledger, bucket=bucket, leases=self.leases, threads=threads)
        self.slots = SlotReporter(engine, ledger=ledger, leases=self.leases, worker=worker, threads=threads)
        self.faults = DeviceFaults(engine, returns=self.returns, hooks=hooks, abandon=abandon_device)
        requests = LeaseRequests(ledger, self.leases, model=model, worker=worker, lease_ttl_s=lease_ttl_s)
        self.supply = self._make_supply(requests, changed, max_backlog)
        self.late = LateJobs(engine, self.supply, commits=self.uploader.commits, checkpoints=self._checkpoints)
        self.parking = self._make_parking()

    def _make_supply(self, requests: LeaseRequests, changed: Condition, max_backlog: int) -> JobSupply:
        return JobSupply(
            engine=self._engine,
            requests=requests,
            bucket=self._bucket,
            leases=self.leases,
            uploader=self.uploader,
            max_backlog=max_backlog,
            on_device_lost=self.faults.on_lost,
            checkpoints=self._checkpoints,
            changed=changed,
            metrics=self._metrics,
            threads=self._threads,
        )

    def _make_parking(self) -> Parking:
        return Parking(
            engine=self._engine,
            ledger=self._ledger,
            leases=self.leases,
            returns=self.returns,
            checkpoints=self._checkpoints,
            backlog=self.uploader.backlog,
            failures=self.uploader.failures,
            late=self.late,
            hooks=self._hooks,
            retries=self.uploader.retries,
            metrics=self._metrics,
            threads=self._threads,
        )
