"""Make the inputs of leased jobs ahead, on threads of their own: a slow input delays no job but its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from latentfarm.errors import JobError, UnavailableError
from latentfarm.job import Job
from latentfarm.storage.bucket import MissingObjectError
from latentfarm_worker.engine.job_inputs import JobInputs
from latentfarm_worker.input_images.reader import InputItem, InputReader, MadeInput
from latentfarm_worker.service.threads import Threads

log = logging.getLogger(__name__)

#: inputs that are made at the same time
_THREADS = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
#: seconds in which an input is looked for that is missing, and in which the bucket is queried for one that it does not
#: give; other jobs that need it fail at once for as long
_MISSING_S, _UNAVAILABLE_S = 30.0, 300.0
#: seconds from which on a job with inputs is not among those that the engine can soon take
_SLOW_S = 1.0


@dataclass(eq=False)
class _Making:
    """An input that is made, or that cannot be made now; times are of time.monotonic()."""

    item: InputItem
    running: bool = True
    made: MadeInput | None = None
    error: Exception | None = None
    #: whether the error is final
    failed: bool = False
    since: float = 0.0
    retry_at: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    callbacks: list[Callable[[], object]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.made is not None or self.failed

    def expired(self, now: float) -> bool:
        """Return whether the error holds no longer for jobs that come now."""
        return self.failed and now >= self.retry_at


class InputUnavailableError(JobError):
    """The bucket does not give an input; another try of the job may help."""


class PendingInputs:
    """The inputs of one job, on their way. It is made by ``InputSupply.begin``."""

    def __init__(self, supply: InputSupply, job: Job, makings: list[_Making]) -> None:
        self._supply = supply
        self._job = job
        self._makings = makings
        self._begun = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether ``result`` has an answer."""
        return all(making.ended for making in self._makings) or any(making.failed for making in self._makings)

    @property
    def due(self) -> bool:
        """Whether ``result`` has an answer, or an input is to be made again now."""
        now = time.monotonic()
        return self.done or any(
            not (making.running or making.ended) and now >= making.retry_at for making in self._makings
        )

    @property
    def slow(self) -> bool:
        """Whether the job has waited so long that others should be leased in its place."""
        return not self.done and time.monotonic() - self._begun > _SLOW_S

    def result(self) -> JobInputs | None:
        """Return the inputs, or None if they are not there yet; those that are due are made again.

        Raises:
            JobError: one of them cannot be used.
            UnavailableError: the model's weights have left the device.
            Exception: what nothing foresaw.
        """
        for making in self._makings:
            if making.failed and making.error is not None:
                raise making.error
        if not self.done:
            self._supply.resume(self._makings)
            return None
        made = {making.item: making.made for making in self._makings if making.made is not None}
        return self._supply.reader.assemble(self._job, made)


class InputSupply:
    """Makes inputs on its threads, each once for all jobs that wait for it. Thread-safe.

    Args:
        reader: makes one input.
        threads: starts the threads.
        missing_s: seconds in which an input is looked for that is not in the bucket.
        unavailable_s: seconds in which the bucket is queried for an input.
    """

    def __init__(
        self,
        reader: InputReader,
        threads: Threads,
        *,
        missing_s: float = _MISSING_S,
        unavailable_s: float = _UNAVAILABLE_S,
    ) -> None:
        self.reader = reader
        self._missing_s, self._unavailable_s = missing_s, unavailable_s
        self._pool = threads.pool("inputs", _THREADS)
        self._lock = Lock()
        self._makings: dict[InputItem, _Making] = {}
        self._stopped = False

    def begin(self, job: Job, on_arrival: Callable[[], object]) -> PendingInputs:
        """Begin to make the inputs of a job. ``on_arrival`` is called on another thread as each of them ends.

        Raises:
            JobError: the model does not take them.
        """
        makings, now = [], time.monotonic()
        for item in self.reader.items(job):
            made = self.reader.cached(item)
            if made is not None:
                makings.append(_Making(item, running=False, made=made))
                continue
            with self._lock:
                making = self._makings.get(item)
                if making is None or making.expired(now):
                    making = self._makings[item] = _Making(item)
                    self._submit(making)
                if not making.ended:
                    making.callbacks.append(on_arrival)
                makings.append(making)
        return PendingInputs(self, job, makings)

    def resume(self, makings: list[_Making]) -> None:
        """Make those inputs again whose pause has ended."""
        now = time.monotonic()
        with self._lock:
            for making in makings:
                if not making.running and not making.ended and now >= making.retry_at:
                    making.running = True
                    # no job has waited for it meanwhile
                    making.since = making.since if now < making.retry_at + self._missing_s else 0.0
                    self._submit(making)

    def stop(self) -> None:
        """Make no more inputs."""
        self._stopped = True

    def close(self) -> None:
        """Make no more inputs, and wait for those that are being made."""
        self.stop()
        self._pool.close()

    def _submit(self, making: _Making) -> None:
        if not self._stopped:
            self._pool.submit(self._make, making, on_error=lambda error: self._end(making, error, final=True))

    # -- on the threads --------------------------------------------------------------------------------------

    def _make(self, making: _Making) -> None:
        if self._stopped:
            return
        try:
            making.made = self.reader.make(making.item)
        except JobError as error:
            self._end(making, error, final=True)
        except UnavailableError as error:
            self._postpone(making, error)
        else:
            self._end(making, None, final=True)

    def _postpone(self, making: _Making, error: UnavailableError) -> None:
        """Let an input be made again after a pause, or give it up."""
        now = time.monotonic()
        missing = isinstance(error, MissingObjectError)
        making.since = making.since or now
        if now - making.since < (self._missing_s if missing else self._unavailable_s):
            making.retry_at = now + making.pause_s
            log.warning(
                "the input %s cannot be read, retrying in %.1f s: %s", making.item.digest, making.pause_s, error
            )
            making.pause_s = min(2 * making.pause_s, _LONGEST_PAUSE_S)
            self._end(making, error, final=False)
        elif missing:
            text = f"{making.item.field} {making.item.digest}: {error}; submit the row again with its image"
            self._end(making, JobError("input_missing", text), final=True)
        else:
            text = f"{making.item.field} {making.item.digest}: {error}; retry the job when the store answers"
            self._end(making, InputUnavailableError("input_unavailable", text), final=True)

    def _end(self, making: _Making, error: Exception | None, *, final: bool) -> None:
        now = time.monotonic()
        with self._lock:
            making.error, making.running = error, False
            making.failed = final and error is not None
            if making.failed:
                making.retry_at = now + self._missing_s
            for item, other in tuple(self._makings.items()):
                # what was made is in the reader's cache; what failed is tried again for jobs that come later
                if other.made is not None or other.expired(now):
                    del self._makings[item]
            callbacks = list(making.callbacks)
        for callback in callbacks:
            with self._pool.guard():
                callback()
