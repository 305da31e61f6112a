"""The loop of a worker: lease jobs, run the engine, hand finished images to the uploader.

The engine runs on the thread that calls ``render_all``. Leasing, encoding, uploads, commits and renewals run on other
threads, so an outage of Redis or the bucket never delays the engine's next step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import TIMEOUT_MAX, Condition, Event, Lock
from typing import cast

from latentfarm.ledger import Lease, Ledger
from latentfarm.storage.bucket import Bucket
from latentfarm_worker import device_errors
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.outcomes import engine_error
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.image_review import ImageReview
from latentfarm_worker.service.loop_parts import LoopParts
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.prefetcher import PrefetchState
from latentfarm_worker.service.signal_listener import SignalListener
from latentfarm_worker.service.suspects import AtRiskRecorder
from latentfarm_worker.service.threads import Threads
from latentfarm_worker.service.turns import Turn
from latentfarm_worker.supervise.shared_state import Phase

log = logging.getLogger(__name__)

#: finished images that may wait for the bucket, besides two for each slot, before no job is leased, which bounds memory
MAX_BACKLOG = 64
#: seconds between two checks of what no notification announces
_POLL_S = 0.2
#: seconds to the next try after an unexpected error, doubled for each one in a row
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


class RenderLoop:
    """Render the jobs of one model as long as the ledger has any.

    ``render_all`` uses the engine, so calls of it wait for each other. All methods are thread-safe.

    Args:
        ledger: the ledger to lease from and commit to.
        bucket: the bucket with the manifests and the images.
        engine: the engine with the loaded model.
        model: alias of the model to lease for.
        worker: name of the worker in the ledger.
        lease_ttl_s: seconds until a lease expires unless it is renewed.
        embed_metadata: write the prompt and the settings into each image.
        max_backlog: finished images that may wait for the bucket, besides two for each slot.
        review: checks and scores the images [default: neither, but for scores that need no model].
        hooks: callbacks to the process [default: none].
        metrics: the counters [default: counters of its own].
        threads: starts the threads [default: a group of its own].

    Attributes:
        between_steps: called before each step, on the engine's thread.
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
        embed_metadata: bool = True,
        max_backlog: int = MAX_BACKLOG,
        review: ImageReview | None = None,
        hooks: WorkerHooks | None = None,
        metrics: Metrics | None = None,
        threads: Threads | None = None,
    ) -> None:
        self._engine = engine
        self.between_steps: Callable[[], None] = lambda: None
        #: whether this process has rendered an image: then its device works
        self._has_rendered = False
        #: images on their way to the engine
        self._admitting: list[ImageState] = []
        self._hooks = hooks or WorkerHooks()
        self.metrics = metrics or Metrics(model)
        self.threads = threads or Threads(self.metrics)
        #: of the thread that calls `render_all`
        self._failures = self.threads.failures("engine")
        #: notified when a round of leasing ends, the backlog shrinks, or the loop is to end
        self._changed = Condition()
        #: only one thread may use the engine: a doorbell that rings meanwhile waits, and then finds no job left
        self._engine_lock = Lock()
        self._stopping, self._draining = Event(), Event()
        #: time.monotonic() by which a draining worker must have committed
        self._deadline = float("inf")
        parts = LoopParts(
            ledger=ledger,
            bucket=bucket,
            engine=engine,
            model=model,
            worker=worker,
            lease_ttl_s=lease_ttl_s,
            embed_metadata=embed_metadata,
            max_backlog=max_backlog,
            review=review or ImageReview(),
            hooks=self._hooks,
            metrics=self.metrics,
            threads=self.threads,
            changed=self._changed,
            abandon_device=self.abandon_device,
        )
        self._leases, self._returns, self._uploader = parts.leases, parts.returns, parts.uploader
        self._faults, self._supply, self._late = parts.faults, parts.supply, parts.late
        self._parking, self._live, self._slots = parts.parking, parts.live, parts.slots
        engine.on_forward = AtRiskRecorder(engine, self._hooks.state)
        # last: it may call at once
        self._signals = self._listen(ledger, model, worker)

    def _listen(self, ledger: Ledger, model: str, worker: str) -> SignalListener:
        return SignalListener(
            ledger,
            on_cancelled=self._leases.check_batch,
            on_paused=self._parking.pause,
            on_urgent=self._on_urgent,
            on_watched=self._slots.on_watched,
            model=model,
            worker=worker,
            threads=self.threads,
        )

    def render_all(self, turn: Turn | None = None) -> int:
        """Render until the ledger has no more jobs of the model, or ``stop``; return the number of ended jobs.

        An error that nothing foresaw releases the jobs of the engine, and the loop goes on after a pause.

        Args:
            turn: render until it is over, or interrupted: then running images stay for the next call [default: no end].
        """
        ended = 0
        with self._engine_lock, self._awake(turn):
            self._supply.on_doorbell()
            while not self.stopped and not (turn and turn.interrupted):
                try:
                    outcomes = self._iterate(turn)
                except Exception as error:  # noqa: BLE001 (after any error, the leases of the jobs must end)
                    self._on_broken_iteration(error)
                    failures = min(self._failures.in_a_row, 10)
                    self._stopping.wait(min(_FIRST_PAUSE_S * 2**failures, _LONGEST_PAUSE_S))
                    continue
                self._failures.succeed()
                if outcomes is None:
                    break
                ended += outcomes
        return ended

    def _iterate(self, turn: Turn | None) -> int | None:
        """Lease and admit jobs, and run one step; return how many jobs ended, or None if no more will come."""
        if turn and turn.over:
            self._give_way(turn)
        self.between_steps()
        # first: what it releases must not begin
        self._parking.park_due(self._deadline if self._draining.is_set() else None)
        for lease in self._leases.take_lost():
            self._engine.cancel(lease)
        self._supply.request(others_first=not self._has_rendered)
        self._admitting = self._supply.take()
        for image in self._admitting:
            self._engine.admit(image)
        self._admitting = []
        if self._engine.busy:
            self._hooks.before_step(turn)
            return self._step()
        return 0 if self._wait_for_jobs(turn) else None

    def _step(self) -> int:
        """Run one step of the engine; return how many jobs ended with it."""
        began = time.perf_counter()
        outcomes: list[Rendered | Failed] = []
        try:
            outcomes = self._engine.step()
        except Exception as error:  # noqa: BLE001 (isolated below)
            outcomes = [*self._faults.isolate(error)]
        finally:
            self._hooks.state.enter(Phase.IDLE)
        busy_s = time.perf_counter() - began
        self._live.report(self._engine)
        for outcome in outcomes:
            self._dispatch(outcome)
        if self._slots.watched:
            self._slots.report()
        self.metrics.step(busy_s)
        self._has_rendered |= any(isinstance(outcome, Rendered) for outcome in outcomes)
        decode_s = [outcome.timings["decode"] for outcome in outcomes if isinstance(outcome, Rendered)]
        self._late.add_decodes(decode_s)
        self._supply.add_step(busy_s - sum(decode_s))
        return len(outcomes)

    def _dispatch(self, outcome: Rendered | Failed) -> None:
        lease = cast("Lease", outcome.handle)
        try:
            if not self._leases.holds(lease):
                return
            if isinstance(outcome, Rendered):
                self._uploader.store(lease, outcome)
            else:
                self._uploader.failures.submit(lease, outcome.error, retry=outcome.retry)
        except Exception as error:  # noqa: BLE001 (of this image)
            # the engine does not have it any more, so nothing else would end its lease
            self._failures.add(error)
            self._uploader.failures.submit(lease, engine_error(error), retry=True)

    # -- trouble ---------------------------------------------------------------------------------------------

    def _on_broken_iteration(self, error: Exception) -> None:
        """Release all jobs that are not finished, after an error outside of a step."""
        self._failures.add(error)
        unfinished = [image.handle for image in self._admitting]
        self._admitting = []
        if device_errors.is_fatal(error):
            self._faults.on_lost(error)
        else:
            unfinished += self._engine.abort_all()
        self._returns.release([*cast("list[Lease]", unfinished), *self._supply.leases])

    def abandon_device(self) -> None:
        """Make no further step, and release the jobs that are not finished, uncharged."""
        self._faults.lost.set()
        self._supply.stop()
        self.release_unfinishable()

    # -- waiting ---------------------------------------------------------------------------------------------

    def _on_urgent(self) -> None:
        self._supply.on_urgent()
        self._hooks.on_urgent()

    def _wait_for_jobs(self, turn: Turn | None) -> bool:
        """Wait until a job may be ready or leased; return False if no more will come."""
        ends = turn is not None and (turn.urgent or turn.over)
        with self._changed:
            self._changed.wait_for(
                lambda: self.stopped or self._supply.has_work(ending=self._is_ending or ends), _POLL_S
            )
        state = self._supply.state
        if state in {PrefetchState.WORKING, PrefetchState.READY}:
            return True
        return not self._draining.is_set() and not ends and state is not PrefetchState.QUEUE_EMPTY

    # -- turns -----------------------------------------------------------------------------------------------

    def sleep(self) -> None:
        """Lease nothing outside of a turn."""
        self._supply.pause(ahead=True, urgent=True)

    @contextmanager
    def _awake(self, turn: Turn | None) -> Iterator[None]:
        """Lease jobs meanwhile; afterwards hold none that is not running, unless the turn goes on later."""
        if turn is None:
            yield
            return
        self._supply.pause(ahead=turn.urgent, urgent=False)
        # the calls of another model have replaced the record of its jobs
        self._engine.on_forward = AtRiskRecorder(self._engine, self._hooks.state)
        yield
        self.sleep()
        if not self._engine.busy and not turn.paused:
            self._returns.release(self._supply.leases)

    def _give_way(self, turn: Turn) -> None:
        """Lease nothing more for a turn that is over, and release the jobs that have not begun, uncharged."""
        self._supply.pause(ahead=True, urgent=turn.urgent)
        self._returns.release(lease for lease in self._late.not_begun() if turn.urgent or not lease.urgent)

    def park_all(self) -> None:
        """Park the images of a turn that was interrupted, and release what has not begun, so that others go on."""
        with self._engine_lock:
            self._parking.park(self._late.worth_parking())
            self._returns.release(self._late.not_begun())

    @property
    def unfinished(self) -> bool:
        """Whether images of a turn that was interrupted wait in the engine."""
        return self._engine.busy

    @property
    def stopped(self) -> bool:
        """Whether no further step is made."""
        return self._stopping.is_set() or self._faults.lost.is_set()

    # -- ending ----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Make ``render_all`` return after the current step. Abandon requests to an unavailable Redis or bucket."""
        self._stopping.set()
        self._supply.stop()
        self._uploader.stop_waiting()

    def drain(self, deadline: float) -> None:
        """Lease no more, and release the jobs that have not begun now, uncharged; finish or park the others.

        Those are parked before the next step that take longer than a checkpoint, or that cannot be committed by
        ``deadline``, a time of ``time.monotonic()``.
        """
        self._deadline = deadline
        self._draining.set()
        self._supply.drain()
        self.release_unfinishable()
        with self._changed:
            self._changed.notify_all()

    def release_unfinishable(self) -> None:
        """Release the jobs that will not end or be parked in time, uncharged, even while the engine's thread hangs."""
        self._returns.release(self._late.find(self._deadline, all_begun=self._faults.lost.is_set()))

    def release_all(self) -> None:
        """Stop, and release all leases uncharged, even of images that wait for the bucket."""
        self.stop()
        self._returns.release(self._leases.held())

    @property
    def leases_held(self) -> int:
        return len(self._leases.held())

    @property
    def backlog(self) -> int:
        """Number of finished images that are not committed yet."""
        return self._uploader.backlog.images

    @property
    def draining(self) -> bool:
        """Whether no more jobs are leased."""
        return self._is_ending or self._faults.lost.is_set()

    @property
    def _is_ending(self) -> bool:
        return self._draining.is_set() or self._stopping.is_set()

    def close(self) -> None:
        """Store what is finished, release the rest uncharged, and end all threads.

        After ``drain`` it waits for the engine and the bucket until the deadline.
        """
        self._signals.close()
        if self._draining.is_set():
            # if a doorbell did not begin `render_all`, Celery does not wait for its end
            if self._engine_lock.acquire(timeout=max(0.0, min(self._deadline - time.monotonic(), TIMEOUT_MAX))):
                self._engine_lock.release()
            self.wait_for_uploads(max(0.0, self._deadline - time.monotonic()))
        self.stop()
        with self._engine_lock:
            self._engine.abort_all()
        self._supply.close()
        self._parking.close()
        self._live.close()
        self._slots.close()
        # the uploader first: an image that is stored now need not be rendered again
        self._uploader.close()
        self.release_all()
        self._leases.close()

    def wait_for_uploads(self, timeout_s: float) -> None:
        """Wait until every finished image is committed, or ``stop`` was called."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping.is_set() or not self.backlog, timeout_s)
