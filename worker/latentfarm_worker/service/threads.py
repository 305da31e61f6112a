"""Every long-lived thread of a worker: none ends with an exception, and none fails without a trace.

An unexpected exception is logged with its cause and counted, and the thread goes on. A thread that fails again and
again, or has ended, makes the worker not ready.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread
from typing import Any

from latentfarm.errors import UnavailableError, describe
from latentfarm_worker.service.metrics import Metrics

log = logging.getLogger(__name__)

#: seconds to the next try after a failure, doubled for each one in a row
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
#: failures in a row that make a worker not ready
_FAILURES = 3
_ENDED = "has ended"


class Failures:
    """Counts a thread's unexpected exceptions and logs them. Thread-safe."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self.name = name
        self._metrics = metrics
        self._lock = Lock()
        self.in_a_row = 0
        self._last = ""
        metrics.thread_starts(name)

    def succeed(self) -> None:
        """Begin to count again from 0."""
        self.in_a_row = 0

    def add(self, error: BaseException) -> None:
        """Count an exception. Its traceback is logged once, not at each repetition."""
        # memory may have run out: then even this fails, and the thread must go on nevertheless
        with suppress(Exception):
            text = describe(error)
            with self._lock:
                self.in_a_row += 1
                repeated, self._last = text == self._last and self.in_a_row > 1, text
            self._metrics.thread_error(self.name)
            log.error("the %s thread failed: %s", self.name, text, exc_info=None if repeated else error)

    def problem(self) -> str:
        """Return what is wrong, or an empty text."""
        return f"fails: {self._last}" if self.in_a_row >= _FAILURES else ""


class Loop:
    """Calls ``step`` on a thread of its own until ``stop``; create it with ``Threads.loop`` or ``Threads.once``."""

    def __init__(
        self, failures: Failures, step: Callable[[], object], *, interval_s: float, wake: Event | None, once: bool
    ) -> None:
        self._failures = failures
        self._step = step
        self._interval_s = interval_s
        self._once = once
        self._wake = wake or Event()
        self._stopped = False
        self._thread = Thread(target=self._run, name=failures.name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """End the current pause."""
        self._wake.set()

    def stop(self, timeout_s: float | None = 0.0) -> None:
        """Call no further step, and wait for the current one for ``timeout_s`` seconds. A step may call it."""
        self._stopped = True
        self._wake.set()
        with suppress(RuntimeError):
            # a thread cannot join itself
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def problem(self) -> str:
        """Return why the thread does not do its work, or an empty text."""
        if not self.alive and not self._stopped:
            return _ENDED
        return self._failures.problem()

    def _run(self) -> None:
        while not self._stopped:
            pause_s = self._interval_s
            try:
                self._wake.clear()
                self._step()
                self._failures.succeed()
                self._stopped = self._stopped or self._once
            except UnavailableError as error:
                # an outage is no fault of this worker, so it stays ready
                self._failures.succeed()
                pause_s = pause_s or _FIRST_PAUSE_S
                log.warning("the %s thread continues in %.1f s: %s", self._failures.name, pause_s, error)
            except Exception as error:  # noqa: BLE001 - the thread must go on after any
                self._failures.add(error)
                pause_s = min(_FIRST_PAUSE_S * 2 ** min(self._failures.in_a_row - 1, 10), pause_s or _LONGEST_PAUSE_S)
            if pause_s and not self._stopped:
                self._wake.wait(pause_s)


class Pool:
    """Runs tasks on threads of its own; create it with ``Threads.pool``."""

    def __init__(self, failures: Failures, size: int) -> None:
        self._failures = failures
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=failures.name)

    def submit(
        self, task: Callable[..., object], *arguments: Any, on_error: Callable[[Exception], object] | None = None
    ) -> None:
        """Run ``task(*arguments)``. It never raises: ``on_error`` receives an exception of the task or of the pool."""
        try:
            self._executor.submit(self._run, task, arguments, on_error)
        except Exception as error:  # noqa: BLE001 - the caller's thread must go on
            self._handle(error, on_error)

    def report(self, error: BaseException) -> None:
        """Log and count an exception that a task handles itself."""
        self._failures.add(error)

    def succeed(self) -> None:
        """Record that a task got on after the exceptions that it reported."""
        self._failures.succeed()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Report an exception of the block and go on behind it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - what follows must not be left out
            self._failures.add(error)

    def close(self) -> None:
        """Finish all tasks and end the threads."""
        self._executor.shutdown()

    def problem(self) -> str:
        """Return why tasks fail, or an empty text."""
        return self._failures.problem()

    def _run(
        self, task: Callable[..., object], arguments: tuple[Any, ...], on_error: Callable[[Exception], object] | None
    ) -> None:
        before = self._failures.in_a_row
        try:
            task(*arguments)
        except Exception as error:  # noqa: BLE001 - an exception would disappear in the Future
            self._handle(error, on_error)
        else:
            if self._failures.in_a_row == before:
                self._failures.succeed()

    def _handle(self, error: Exception, on_error: Callable[[Exception], object] | None) -> None:
        self._failures.add(error)
        if on_error is not None:
            with self.guard():
                on_error(error)


class Threads:
    """Starts the long-lived threads of a worker and reports which of them do not work. Thread-safe."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started: list[tuple[str, Loop | Pool | Failures]] = []

    def loop(self, name: str, step: Callable[[], object], *, interval_s: float, wake: Event | None = None) -> Loop:
        """Call ``step`` again and again, with a pause of ``interval_s`` seconds between two calls, which ``wake`` ends.

        After an unexpected exception the pause is short at first and doubles up to the interval; without an interval
        up to five seconds. ``UnavailableError`` is an outage and no failure of the thread.
        """
        return self._add(name, Loop(Failures(name, self._metrics), step, interval_s=interval_s, wake=wake, once=False))

    def once(self, name: str, action: Callable[[], object]) -> Loop:
        """Call ``action`` until it returns without an exception."""
        return self._add(name, Loop(Failures(name, self._metrics), action, interval_s=0, wake=None, once=True))

    def pool(self, name: str, size: int) -> Pool:
        """Return a pool of ``size`` threads."""
        pool = Pool(Failures(name, self._metrics), size)
        self._started.append((name, pool))
        return pool

    def failures(self, name: str) -> Failures:
        """Return a counter of the exceptions of a thread that is not started here; its owner calls it."""
        failures = Failures(name, self._metrics)
        self._started.append((name, failures))
        return failures

    def with_metrics(self, metrics: Metrics) -> Threads:
        """Return what starts further threads, whose exceptions ``metrics`` counts; all are reported together."""
        others = Threads(metrics)
        others._started = self._started
        return others

    def problem(self) -> str:
        """Return which thread does not work and why, or an empty text."""
        for name, started in tuple(self._started):
            if problem := started.problem():
                return f"the {name} thread {problem}"
        return ""

    def names(self) -> list[str]:
        """Return the names of all threads and pools."""
        return [name for name, _ in self._started]

    def _add(self, name: str, loop: Loop) -> Loop:
        self._started.append((name, loop))
        return loop
