"""A real worker with its threads in the test's process, of which any call to the outside can raise."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import Event, Lock
from typing import Any

import pytest
from tests.conftest import until
from tests.support.rendering import SMALL
from tests.support.scraping import samples_of

from latentfarm import Batch, Farm, doorbell
from latentfarm.ledger import Ledger, WorkerSignals
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.webhooks.deliver import deliver_due
from latentfarm_worker.build import load_model
from latentfarm_worker.service.worker import Worker
from latentfarm_worker.supervise.shared_state import SharedState

BATCHES = count()


@dataclass
class Fault:
    """Errors that the next calls raise, one each, if their first argument is such."""

    method: str
    part_of_key: str
    errors: list[Exception]
    when: Callable[[Any], bool]
    #: set by the first call that succeeds after the errors
    answered: Event = field(default_factory=Event)

    def is_of(self, method: str, argument: Any) -> bool:
        """Return whether a call of the method with this argument is meant."""
        return method == self.method and self.part_of_key in str(argument) and self.when(argument)


class Faults:
    """Raises exceptions at chosen calls of a worker, and records which calls it makes."""

    def __init__(self) -> None:
        self.calls: set[str] = set()
        self.beats: list[float] = []
        self._armed: list[Fault] = []
        self._lock = Lock()

    def arm(
        self, call: str, errors: Iterable[Exception], when: Callable[[Any], bool] = lambda _argument: True
    ) -> Fault:
        """Raise these errors at the next calls; ``call`` is a method, and perhaps a part of an object's key."""
        method, _, part_of_key = call.partition(" ")
        fault = Fault(method, part_of_key, list(errors), when)
        self._armed.append(fault)
        return fault

    def disarm(self) -> None:
        """Raise no more."""
        self._armed = []

    def install(self, place: str, thing: object, *, inside: str) -> None:
        """Pass every public method of an object through here, but calls from modules of ``inside``."""
        for name, _ in inspect.getmembers(type(thing), inspect.isfunction):
            if not name.startswith("_"):
                setattr(thing, name, self.through(f"{place}.{name}", getattr(thing, name), inside=inside))

    def through(self, name: str, method: Callable[..., Any], *, inside: str) -> Callable[..., Any]:
        """Return the method with faults."""

        def call(*arguments: Any, **named: Any) -> Any:
            caller = str(sys._getframe(1).f_globals["__name__"])
            if caller == inside or caller.startswith(f"{inside}."):
                return method(*arguments, **named)
            with self._lock:
                self.calls.add(name)
                faults = [fault for fault in self._armed if fault.is_of(name, next(iter(arguments), None))]
                for fault in faults:
                    if fault.errors:
                        raise fault.errors.pop(0)
            if name == "ledger.heartbeat":
                self.beats.append(time.monotonic())
            if name == "family.predict":
                self._wait_for_renewal()
            result = method(*arguments, **named)
            for fault in faults:
                fault.answered.set()
            return result

        return call

    def _wait_for_renewal(self) -> None:
        """Let a step wait while a fault of the renewals is armed, because leases are renewed only while jobs run."""
        for fault in self._armed:
            if fault.method == "ledger.renew":
                assert fault.answered.wait(60)


@dataclass(frozen=True)
class Subject:
    """A worker in this process and the faults of its calls."""

    worker: Worker
    faults: Faults
    farm: Farm

    def submit(self, count: int = 3, **fields: Any) -> Batch:
        """Submit small jobs. Nothing about them is in a cache of the worker."""
        name = f"b{next(BATCHES)}"
        return self.farm.submit([{"prompt": f"{name} {n}", **SMALL, **fields} for n in range(count)], batch=name)

    def render(self, *batches: Batch) -> None:
        """Render as the doorbell's task does, until the batches are complete."""
        deadline = time.monotonic() + 60
        while not all(batch.status().complete for batch in batches):
            self.worker.render_loop.render_all()
            assert time.monotonic() < deadline, [batch.status() for batch in batches]

    def require_well(self) -> None:
        """Everything is as before the fault: no lease is held, no image waits, every thread works."""
        loop, client = self.worker.render_loop, self.farm.ledger.redis
        until(lambda: not loop.leases_held and not loop.backlog and not client.zcard("{lf}:leases"), timeout_s=60)
        until(lambda: self.worker._health.ready() == "", timeout_s=60)

    def thread_errors(self) -> float:
        """Return how many exceptions the worker's metrics have counted."""
        samples = samples_of(self.worker._metrics.registry)
        return sum(value for key, value in samples.items() if key[0] == "latentfarm_thread_errors_total")


@contextmanager
def serving(settings: Settings, **changes: Any) -> Iterator[Subject]:
    """Provide a worker whose calls pass through ``Faults``."""
    faults = Faults()
    settings = settings.model_copy(
        update={
            "housekeeping_interval_s": 0.2,
            "lease_ttl_s": 6.0,
            "slots": 2,
            "deterministic": False,
            "metrics_address": "127.0.0.1:0",
        }
        | changes
    )
    app = doorbell.make_app(settings.redis_url, model="mini")

    def instrumented(place: str, make: Callable[[Any], Any], inside: str) -> Callable[[Any], Any]:
        def make_instrumented(argument: Any) -> Any:
            made = make(argument)
            faults.install(place, made, inside=inside)
            return made

        return make_instrumented

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doorbell, "ring", faults.through("doorbell.ring", doorbell.ring, inside="-"))
        deliver = faults.through("webhooks.deliver_due", deliver_due, inside="-")
        patch.setattr(f"{Worker.__module__}.deliver_due", deliver)
        wait = faults.through("signals.wait", WorkerSignals.wait, inside="-")
        patch.setattr(WorkerSignals, "wait", wait)
        with pytest.MonkeyPatch.context() as start:
            load = instrumented("family", load_model, "latentfarm_worker.models")
            start.setattr(f"{Worker.__module__}.load_model", load)
            start.setattr(Ledger, "connect", instrumented("ledger", Ledger.connect, "latentfarm.ledger"))
            start.setattr(Bucket, "connect", instrumented("bucket", Bucket.connect, "latentfarm.storage.bucket"))
            worker = Worker(settings, app, state=SharedState(), name="worker-a", supervised=False)
        faults.install("encoder", worker.render_loop._uploader._objects._encoder, inside="latentfarm_worker.images")
        # orphans are due as soon as their batch has ended
        worker._maintenance._orphans_after_s = 0
        # the start has calls of its own
        faults.calls.clear()
        try:
            yield Subject(worker, faults, Farm.open(settings))
        finally:
            worker.close()
