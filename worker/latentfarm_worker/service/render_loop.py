"""One worker's loop: lease -> engine -> delivery.

The engine runs on the thread that calls ``render_all``; pictures are encoded, stored and committed on others while
the next steps run; leases are renewed on a third kind. No outage keeps the engine from its next step.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Iterable
from threading import Event, Lock

from latentfarm.errors import JobError, UnavailableError
from latentfarm.ledger import Ledger
from latentfarm.storage.bucket import Bucket
from latentfarm_worker import device_errors
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.engine.previews import PreviewRecorder
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.prefetcher import Prefetcher
from latentfarm_worker.service.uploader import Uploader
from latentfarm_worker.supervise.shared_state import Phase, SharedState

log = logging.getLogger(__name__)

#: pictures that wait for the store, besides those in the engine: beyond it nothing is leased, so memory stays bounded
_MAX_BACKLOG = 64
_FIRST_PAUSE_S = 0.2
#: seconds before a slot falls free in which the job that will have it is leased
_AHEAD_S = 0.5
#: what an estimate may be wrong by, and steps that it is made of
_CAUTION, _RECENT = 1.2, 16


class WorkerHooks:
    """What a renderer tells the process it runs in; this one does nothing about it."""

    def __init__(self, pulse: SharedState | None = None) -> None:
        self.pulse = pulse or SharedState()

    def wake_others(self) -> None:
        """Jobs were given back: let another worker know."""

    def broken(self) -> None:
        """The device is lost to this process, which must end."""


class RenderLoop:
    """A resident pipeline that renders whatever the ledger leases it.

    ``render_all`` is for one thread, the rest for any.
    """

    def __init__(  # noqa: PLR0913 (named, and each a thing of its own)
        self,
        *,
        ledger: Ledger,
        bucket: Bucket,
        engine: Engine,
        tracer: PreviewRecorder,
        model: str,
        worker: str,
        lease_s: float,
        embed_metadata: bool = True,
        host: WorkerHooks | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.model = model
        self.worker = worker
        self._ledger = ledger
        self._engine = engine
        self._tracer = tracer
        self._host = host or WorkerHooks()
        self.metrics = metrics or Metrics(model)
        self._leases = LeaseRenewer(ledger, lease_s=lease_s, metrics=self.metrics)
        self._delivery = Uploader(
            ledger=ledger,
            bucket=bucket,
            leases=self._leases,
            encoder=ImageFileEncoder(engine, model=model, embed_metadata=embed_metadata),
            pulse=self._host.pulse,
            metrics=self.metrics,
            worker=worker,
        )
        self._stager = Prefetcher(
            ledger=ledger,
            bucket=bucket,
            leases=self._leases,
            prepare=engine.prepare,
            fail=self._delivery.fail,
            metrics=self.metrics,
            model=model,
            worker=worker,
            lease_s=lease_s,
        )
        self.meter = self._delivery.meter
        engine.on_call = self._host.pulse.step
        # the engine is for one thread: a second doorbell heard at once waits, then finds nothing left to do
        self._turn = Lock()
        self._stop, self._draining, self._broken = Event(), Event(), Event()
        #: time.monotonic() by which what is begun while draining must be committed
        self._until = float("inf")
        self._step_s: deque[float] = deque(maxlen=_RECENT)
        self._decode_s: deque[float] = deque(maxlen=_RECENT)

    def render_all(self) -> int:
        """Render until the ledger has no more job of the model, or ``stop``; return how many pictures were made."""
        made = 0
        with self._turn:
            while not self._stop.is_set() and not self._broken.is_set():
                self._abandon_lost()
                self._stager.ask(self._room())
                for image in self._stager.take():
                    self._engine.admit(image)
                if self._engine.busy:
                    made += self._step()
                elif not self._wait_for_jobs():
                    break
        return made

    def _step(self) -> int:
        """Make one step; return how many jobs ended with it."""
        began = time.perf_counter()
        outcomes: list[Rendered | Failed] = []
        try:
            outcomes = self._engine.step()
        except Exception as error:  # noqa: BLE001 (whatever it is, the jobs in it must not be leased for ever)
            self._after_broken_step(error)
        finally:
            self._host.pulse.enter(Phase.IDLE)
        busy_s = time.perf_counter() - began
        self.meter.add(busy_s=busy_s)
        self.metrics.step(busy_s)
        decode_s = [outcome.timings["decode"] for outcome in outcomes if isinstance(outcome, Rendered)]
        self._decode_s.extend(decode_s)
        self._step_s.append(busy_s - sum(decode_s))
        for outcome in outcomes:
            self._hand_on(outcome)
        return len(outcomes)

    def _after_broken_step(self, error: Exception) -> None:
        """Give the jobs back if the device is to blame, else charge each an attempt."""
        if device_errors.is_fatal(error):
            log.critical("the device is lost to this process: %s", error)
            self._broken.set()
            self._stager.stop()
            self.give_back_late()
            self._host.broken()
            return
        log.error("a step broke", exc_info=error)
        for job in self._engine.clear():
            self._tracer.forget(job.name)
            if lease := self._leases.get(job.name):
                self._delivery.fail(lease, JobError("render", f"{type(error).__name__}: {error}"), retry=True)

    def _hand_on(self, outcome: Rendered | Failed) -> None:
        name = outcome.job.name
        lease = self._leases.get(name)
        if lease is not None and isinstance(outcome, Rendered):
            self._delivery.store(lease, outcome, self._tracer.take(outcome.job, outcome.pixels))
            return
        self._tracer.forget(name)
        if lease is not None and isinstance(outcome, Failed):
            self._delivery.fail(lease, outcome.error)

    # -- leasing ---------------------------------------------------------------------------------------------

    def _abandon_lost(self) -> None:
        for name in self._leases.take_lost():
            self._engine.cancel(name)
            self._tracer.forget(name)

    def _room(self) -> int:
        """Return how many more jobs may be leased: what the engine takes soon, unless the store is far behind.

        So at most the slots' number and as many again are in flight, and the engine finds the next job at its door.
        None may be leased before half of those are gone: one Redis answers the whole farm, so it is asked for several
        at once.
        """
        if self._draining.is_set():
            return 0
        soon = int(_AHEAD_S / statistics.median(self._step_s)) if self._step_s else 0
        wanted, staged = self._engine.free_within(soon), len(self._stager.held)
        if 2 * staged > wanted:
            return 0
        backlog = _MAX_BACKLOG + 2 * self._engine.slots - self._delivery.waiting - len(self._engine.calls_left())
        return min(wanted, backlog) - staged

    def _wait_for_jobs(self) -> bool:
        """With nothing to render, wait for what could change that; return whether anything could."""
        if self._stager.working:
            self._stager.wait(_FIRST_PAUSE_S)
            return True
        if self._stager.ready:
            # a round ended since the engine last took what there was
            return True
        if self._draining.is_set() or (self._stager.dry and not self._stager.held):
            return False
        if self._stager.held_up or self._room() <= 0:
            self._delivery.wait_until(self._may_lease, _FIRST_PAUSE_S)
        return True

    def _may_lease(self) -> bool:
        return self._draining.is_set() or (self._room() > 0 and not self._stager.held_up)

    # -- ending ----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let ``render_all`` return after the step that runs now, and wait for no store."""
        self._stop.set()
        self._stager.stop()
        self._delivery.give_up()

    def drain(self, until: float) -> None:
        """Lease no more, finish what can be committed by ``until``, of ``time.monotonic()``; give the rest back now."""
        self._until = until
        self._draining.set()
        self._stager.stop()
        self.give_back_late()

    def give_back_late(self) -> None:
        """Give back what cannot be committed in time, uncharged; it works while the engine's thread is blocked."""
        self._give_back(self._late())

    def give_back_all(self) -> None:
        """Give back whatever is leased, uncharged, even pictures that wait for the store."""
        self.stop()
        self._give_back([lease.name for lease in self._leases.held()])

    @property
    def holds_jobs(self) -> bool:
        """Whether anything is leased."""
        return self.leases_held > 0

    @property
    def leases_held(self) -> int:
        """Jobs that are leased."""
        return len(self._leases.held())

    @property
    def backlog(self) -> int:
        """Finished pictures that are not committed yet."""
        return self._delivery.waiting

    @property
    def draining(self) -> bool:
        """Whether nothing more is leased."""
        return self._draining.is_set() or self._stop.is_set() or self._broken.is_set()

    def close(self) -> None:
        """Store what is finished, give back what is not, uncharged, and stop every thread."""
        if self._draining.is_set():
            self._delivery.wait_until(lambda: not self._delivery.waiting, self._until - time.monotonic())
        self.stop()
        with self._turn:
            self._engine.clear()
        self._stager.close()
        # pictures first: what the store still takes need not be rendered again
        self._delivery.close()
        self.give_back_all()
        self._leases.close()

    def _late(self) -> list[str]:
        """Return the jobs that will not be committed in time, by what steps took so far.

        Those that wait are among them: nothing is spent on them yet.
        """
        calls_left = self._engine.calls_left()
        begun = sorted((calls, name) for name, calls in calls_left.items() if calls is not None)
        late = [lease.name for lease in self._stager.held]
        late += [name for name, calls in calls_left.items() if calls is None]
        if self._broken.is_set() or not self._step_s:
            return late + [name for _, name in begun]
        left_s = self._until - time.monotonic() - self._delivery.typical_s
        step_s, decode_s = statistics.median(self._step_s), statistics.median(self._decode_s or (0.0,))
        for place, (calls, name) in enumerate(begun, 1):
            # pictures that end together are decoded one after the other
            if _CAUTION * (calls * step_s + place * decode_s) > left_s:
                late.append(name)
        return late

    def _give_back(self, names: Iterable[str]) -> None:
        leases = self._leases.give_up(names)
        if not leases:
            return
        try:
            returned = self._ledger.release(leases)
        except UnavailableError as error:
            self.metrics.retry("release")
            log.warning("%d jobs could not be given back, their leases will run out: %s", len(leases), error)
            return
        log.info("gave %d unfinished jobs back", returned)
        self.metrics.leased("returned", returned)
        self._host.wake_others()
