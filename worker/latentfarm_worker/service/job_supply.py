"""Which jobs a worker leases when: those of batches ahead of the engine, and urgent ones at once.

A worker hears of an urgent job by a signal of the ledger, and leases it for the next step. What is leased already
waits behind it, and what runs is paused for it if no slot is free. So a full worker leaves it a moment to others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Condition
from typing import Any, cast

from latentfarm.job import Job
from latentfarm.ledger import Company, Lease
from latentfarm.storage.bucket import Bucket
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.image_checkpoint import CheckpointError
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.job_inputs import JobInputs
from latentfarm_worker.engine.preparation import tokenize
from latentfarm_worker.input_images.reader import InputReader
from latentfarm_worker.input_images.supply import InputSupply
from latentfarm_worker.service.checkpoints import Checkpoints
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.lease_requests import LeaseRequests
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.prefetcher import Prefetcher, PrefetchState
from latentfarm_worker.service.recent_seconds import RecentSeconds
from latentfarm_worker.service.suspects import cohort_of
from latentfarm_worker.service.threads import Threads
from latentfarm_worker.service.uploader import Uploader

#: seconds before a slot becomes free in which its next job is leased
_AHEAD_S = 1.0
#: seconds in which a worker with a free slot can take an urgent job before a full one
_DELAY_S = 0.01


class JobSupply:
    """Leases and prepares jobs for the engine. ``take`` and ``request`` are for the engine's thread.

    Args:
        engine: the engine.
        requests: leases jobs.
        bucket: the bucket with the manifests and the input images.
        leases: renews the leases.
        uploader: records failures; no job is leased while too many images wait for it.
        max_backlog: images that may wait for the bucket, besides two for each slot.
        on_device_lost: called with a device error that this process cannot recover from.
        changed: notified after each round.
        checkpoints: reads those of jobs that go on.
        metrics: counts retries.
        threads: starts the threads.
    """

    def __init__(  # noqa: PLR0913 (all are collaborators, passed by name)
        self,
        *,
        engine: Engine,
        requests: LeaseRequests,
        bucket: Bucket,
        leases: LeaseRenewer,
        uploader: Uploader,
        max_backlog: int,
        on_device_lost: Callable[[Exception], None],
        changed: Condition,
        checkpoints: Checkpoints,
        metrics: Metrics,
        threads: Threads,
    ) -> None:
        self._engine = engine
        self._uploader = uploader
        self._checkpoints = checkpoints
        self._max_backlog = max_backlog
        self._changed = changed
        self._draining = False
        self._others_first = True
        self._steps = RecentSeconds()

        family = engine.family
        moved = family.encoder_placement.placement == "offload"
        self._inputs = InputSupply(InputReader(bucket, family), threads)

        def make_prefetcher(on_end: Callable[[], object], *, urgent: bool) -> Prefetcher:
            return Prefetcher(
                requests=requests,
                bucket=bucket,
                inputs=self._inputs,
                leases=leases,
                prepare=self._prepare,
                fail=uploader.failures.submit,
                on_device_lost=on_device_lost,
                on_end=on_end,
                metrics=metrics,
                threads=threads,
                urgent=urgent,
                prompts_of=partial(tokenize, family) if moved and not urgent else None,
            )

        self.ahead = make_prefetcher(self._notify, urgent=False)
        #: a prefetcher of its own, because a round of the other may take long
        self.urgent = make_prefetcher(self._on_urgent_round, urgent=True)

    def _prepare(self, job: Job, lease: Lease, inputs: JobInputs) -> ImageState:
        """Return a job's image, which goes on from its checkpoint if it has one that can be used."""
        review = self._uploader.review
        review.require(job)
        prepare = partial(
            self._engine.prepare,
            job,
            lease,
            inputs=inputs,
            cohort=cohort_of(lease),
            interactive=lease.interactive,
            urgent=lease.urgent,
            finish=lease.finish,
        )
        checkpoint = self._checkpoints.read(lease)
        if checkpoint is not None:
            try:
                image = prepare(checkpoint=checkpoint)
            except CheckpointError as error:
                self._checkpoints.refuse(lease, error)
            else:
                self._checkpoints.use(checkpoint)
                return review.prepared(image)
        return review.prepared(prepare())

    @property
    def leases(self) -> list[Lease]:
        """The leases of jobs that the engine has not taken yet."""
        return [*self.urgent.leases, *self.ahead.leases]

    @property
    def step_s(self) -> float | None:
        """The median seconds of recent steps, without the decoder's; None before the first."""
        return self._steps.median

    def add_step(self, seconds: float) -> None:
        """Record how long a step took."""
        self._steps.add(seconds)

    # -- leasing ---------------------------------------------------------------------------------------------

    def on_doorbell(self) -> None:
        """Handle a doorbell: the ledger may have jobs again."""
        self.ahead.on_doorbell()

    def on_urgent(self) -> None:
        """Handle a signal that the ledger has an urgent job. Thread-safe."""
        self.urgent.on_doorbell()
        # now, not when the engine has time: so the job is ready when the step ends
        self._request_urgent()
        self._notify()

    def request(self, *, others_first: bool) -> None:
        """Start to lease what the engine can soon take. ``others_first``: jobs that run alone come last.

        On a device that breaks with every job, the few suspects would be charged for it one after the other.
        """
        self._others_first = others_first
        self._request_urgent()
        capacity = self.capacity()
        alone = capacity > 0 and not self._has_lone_suspect()
        self.ahead.request(capacity, alone=alone, others_first=others_first)

    def take(self) -> list[ImageState]:
        """Return the prepared jobs whose lease is still held, urgent ones first."""
        return [*self.urgent.take(), *self.ahead.take()]

    def capacity(self) -> int:
        """Return how many more jobs to lease: as many as the engine can admit soon, within the limit of the backlog.

        So about twice the slots are in flight, and the engine always finds the next job prepared. The result is 0
        until the engine has taken half of the prefetched jobs: one Redis serves the whole farm, so jobs are leased
        several at a time.
        """
        if self._draining or self.ahead.paused:
            return 0
        wanted, prefetched = self._engine.free_within(self._steps_in(_AHEAD_S)), self.ahead.prefetched
        if 2 * prefetched > wanted:
            return 0
        return min(wanted, self._room()) - prefetched

    def urgent_capacity(self) -> int:
        """Return how many more urgent jobs to lease: as many as can begin now or at the next step.

        Other jobs are not counted: those that wait do so behind these, and those that run are paused.
        """
        if self._draining:
            return 0
        wanted, prefetched = self._engine.free_within(1, urgent=True), self.urgent.prefetched
        return min(wanted, self._room() + self._engine.slots) - prefetched

    def _request_urgent(self) -> None:
        count = self.urgent_capacity() if self.urgent.wanted else 0
        alone = count > 0 and not self._has_lone_suspect()
        # also for none: the manifest of a job that is leased may be due to be read again
        delay_s = 0.0 if self._engine.free_within(1) else _DELAY_S
        self.urgent.request(count, alone=alone, others_first=self._others_first, delay_s=delay_s)

    def _room(self) -> int:
        """Return how many more images may be in flight."""
        in_flight = self._uploader.backlog.images + len(self._engine.remaining())
        return self._max_backlog + 2 * self._engine.slots - in_flight

    def _steps_in(self, seconds: float) -> int:
        return int(seconds / self.step_s) if self.step_s else 0

    def _has_lone_suspect(self) -> bool:
        """Return whether a job that must run alone is here: one at a time, so that the others go on."""
        handles = (handle for handle, _ in self._engine.remaining())
        return any(lease.company is Company.ALONE for lease in (*self.leases, *cast("Any", handles)))

    def _on_urgent_round(self) -> None:
        # a signal may have come during the round, and the engine may be in a long step
        self._request_urgent()
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- waiting ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> PrefetchState:
        """What can be done for the engine now, the first that applies to one of the prefetchers."""
        states = (self.urgent.state, self.ahead.state)
        first = (PrefetchState.WORKING, PrefetchState.READY, PrefetchState.BACKING_OFF)
        return next((state for state in first if state in states), states[1])

    def has_work(self, *, ending: bool) -> bool:
        """Return whether a job can be taken or leased now. ``ending``: the loop is to end, if it can."""
        match self.state:
            case PrefetchState.WORKING:
                return False
            case PrefetchState.READY | PrefetchState.QUEUE_EMPTY:
                return True
            case PrefetchState.BACKING_OFF:
                return ending
            case PrefetchState.IDLE:
                return ending or self.capacity() > 0

    # -- turns -----------------------------------------------------------------------------------------------

    def pause(self, *, ahead: bool, urgent: bool) -> None:
        """Lease no more jobs, those of batches ahead of the engine or urgent ones, or lease them again."""
        self.ahead.paused, self.urgent.paused = ahead, urgent

    # -- ending ----------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Lease no more."""
        self._draining = True
        self.stop()

    def stop(self) -> None:
        """Start no more rounds. Jobs that a running round still leases are released uncharged."""
        self.ahead.stop()
        self.urgent.stop()
        self._inputs.stop()

    def close(self) -> None:
        """Stop, and wait for the running rounds."""
        self.ahead.close()
        self.urgent.close()
        self._inputs.close()
