"""Requests to Redis and the bucket that are repeated until they are answered, or are of no use any more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from threading import Event
from typing import Generic, TypeVar

from latentfarm.errors import SchemaError, UnavailableError
from latentfarm.ledger import Lease
from latentfarm.monitoring.logs import log_fields
from latentfarm_worker.service.lease_renewer import LeaseRenewer
from latentfarm_worker.service.metrics import Metrics, Operation
from latentfarm_worker.service.threads import Pool

T = TypeVar("T")
log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
#: further tries of a request that raised an unexpected exception
_RETRIES = 3
#: characters of an error's message
_MAX_MESSAGE = 2_000


@dataclass(frozen=True)
class Done(Generic[T]):
    """The result of a request that was answered."""

    value: T


@dataclass(frozen=True)
class Broken:
    """An unexpected exception of a request, which came again at each further try."""

    error: Exception


class Abandoned(Enum):
    """Why a request was not repeated any more."""

    STOPPED = "the worker stops"
    LEASE_LOST = "the lease is lost"


class Retries:
    """Repeats requests as long as the worker runs. Thread-safe.

    Args:
        stopping: set when the worker stops.
        leases: the leases of the jobs that requests are for.
        metrics: counts the retries.
    """

    def __init__(self, stopping: Event, leases: LeaseRenewer, metrics: Metrics) -> None:
        self._stopping = stopping
        self._leases = leases
        self._metrics = metrics

    def repeat(
        self, operation: Operation, action: Callable[[], T], *, pool: Pool, lease: Lease | None = None
    ) -> Done[T] | Abandoned | Broken:
        """Repeat an action while Redis or the bucket is unavailable, as long as the lease is held.

        After an unexpected exception it is repeated three times. ``pool`` counts such exceptions.
        """
        pause_s, retries = _FIRST_PAUSE_S, _RETRIES
        while True:
            try:
                result = action()
            except (UnavailableError, SchemaError) as error:
                # with another schema nothing can be recorded: the heartbeat ends this worker
                problem: Exception = error
            except Exception as error:  # noqa: BLE001 - the lease of the job must end after any
                pool.report(error)
                if not retries:
                    return Broken(error)
                retries -= 1
                problem = error
            else:
                pool.succeed()
                return Done(result)
            log.warning("cannot %s, retrying in %.1f s: %s", operation, pause_s, printable(str(problem)))
            self._metrics.retry(operation, problem)
            if self._stopping.wait(pause_s):
                return Abandoned.STOPPED
            if lease is not None and not self._leases.holds(lease):
                return Abandoned.LEASE_LOST
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def printable(text: str) -> str:
    """Return a text that Redis, logs and terminals accept: a library's message may have any characters, and pages."""
    text = text[:_MAX_MESSAGE].encode("utf-8", "backslashreplace").decode()
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def log_abandoned(leases: Iterable[Lease], reason: Abandoned, state: str) -> None:
    """Log what is not done. If the worker stops, ``RenderLoop.release_all`` releases the leases uncharged."""
    for lease in leases:
        log.warning("%s is %s: %s", lease.name, state, reason.value, extra=log_fields(lease.name))
