"""Reports of slots: what a watched worker has on its device now, and how each image looks so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import redis
from pydantic import TypeAdapter, ValidationError

from latentfarm.ledger.subscription import Subscription

#: followed by the worker's name: a server reads the reports only of those that it watches
_CHANNEL = "{lf}:slots:"


@dataclass(frozen=True)
class Slot:
    """An image on the device: ``step`` of ``steps`` have ended. ``preview`` is a JPEG as base64, or empty."""

    job: str
    step: int
    steps: int
    preview: str = ""


@dataclass(frozen=True)
class SlotsReport:
    """All images on the device of a worker, in a stable order."""

    worker: str
    slots: tuple[Slot, ...]


_SLOTS = TypeAdapter(tuple[Slot, ...])


def slots_message(report: SlotsReport) -> tuple[str, bytes]:
    """Return the channel of a report, and its message as JSON."""
    return f"{_CHANNEL}{report.worker}", _SLOTS.dump_json(report.slots)


class SlotReports(Subscription):
    """A subscription to the reports of some workers; a context manager. A report may be missed."""

    def __init__(self, client: redis.Redis, where: str, workers: Iterable[str]) -> None:
        super().__init__(client, where, [f"{_CHANNEL}{worker}" for worker in workers])

    def wait(self, timeout_s: float) -> SlotsReport | None:
        """Return the next report, or None after ``timeout_s`` seconds.

        Raises:
            UnavailableError: Redis is unavailable; the next call subscribes again.
        """
        message = self._message(timeout_s)
        return None if message is None else parse_slots(*message)


def parse_slots(channel: str, content: bytes) -> SlotsReport | None:
    """Return the report of a message; None if another version of latentfarm wrote it in another form."""
    try:
        return SlotsReport(channel.removeprefix(_CHANNEL), _SLOTS.validate_json(content))
    except ValidationError:
        return None
