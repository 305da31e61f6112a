"""Watches workers for the clients of one server: signals to them that they are watched, and follows their reports."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, Event

from latentfarm.ledger import Ledger, SlotsReport
from latentfarm.ledger.worker_signals import WATCH_REPEAT_S

#: seconds after which a thread that waits looks whether the server ends, or other workers are watched
_IDLE_S, _WAIT_S = 1.0, 0.25


class WatchedWorkers:
    """The workers that clients watch now, each once however many clients do. Thread-safe."""

    def __init__(self) -> None:
        self._clients: Counter[str] = Counter()
        self._changed = Condition()

    @contextmanager
    def watch(self, workers: Collection[str]) -> Iterator[None]:
        """Watch workers meanwhile, for one client."""
        with self._changed:
            self._clients.update(workers)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._clients.subtract(workers)
                # without those that no client watches
                self._clients = +self._clients

    def names(self) -> frozenset[str]:
        """Return the names of the workers that are watched."""
        with self._changed:
            return frozenset(self._clients)

    def follow(self, ledger: Ledger, stopping: Event, pass_on: Callable[[Sequence[SlotsReport]], object]) -> None:
        """Pass on the reports of watched workers until ``stopping``. Without a client, nothing is sent to Redis.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        while not stopping.is_set():
            with self._changed:
                watched = self._changed.wait_for(lambda: self._clients, _IDLE_S)
            if watched:
                self._follow(ledger, self.names(), stopping, pass_on)

    def _follow(
        self,
        ledger: Ledger,
        names: frozenset[str],
        stopping: Event,
        pass_on: Callable[[Sequence[SlotsReport]], object],
    ) -> None:
        """Pass on the reports of these workers as long as they, and no others, are watched."""
        due = 0.0
        with ledger.slot_reports(names) as reports:
            # it subscribes before the first signal, which an idle worker answers at once
            report = reports.wait(0)
            while names == self.names() and not stopping.is_set():
                if report is not None:
                    pass_on([report])
                if time.monotonic() >= due:
                    due = time.monotonic() + WATCH_REPEAT_S
                    ledger.watch_workers(names)
                report = reports.wait(_WAIT_S)
