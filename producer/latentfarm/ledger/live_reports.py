"""Live reports: how far workers are with the images that clients wait for, and their previews."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import redis
from pydantic import TypeAdapter, ValidationError

from latentfarm.ledger.subscription import Subscription

CHANNEL = "{lf}:live"
#: reports that one call returns at most
_MAX_REPORTS = 1_000


@dataclass(frozen=True)
class LiveReport:
    """A denoising step of a job, or a preview of its image.

    ``step`` of ``steps`` have ended. ``preview`` is the key of the preview in the bucket, its ``number`` counts from 0;
    it is empty in a report of a step.
    """

    job: str
    step: int
    steps: int
    preview: str = ""
    number: int = 0


_REPORT = TypeAdapter(LiveReport)


def report_text(report: LiveReport) -> bytes:
    """Return a report as the JSON of its message."""
    return _REPORT.dump_json(report)


class LiveReports(Subscription):
    """A subscription to the live reports of all workers; a context manager. A report may be missed."""

    def __init__(self, client: redis.Redis, where: str) -> None:
        super().__init__(client, where, (CHANNEL,))

    def wait(self, timeout_s: float) -> list[LiveReport]:
        """Return the reports that have come; if none has, wait up to ``timeout_s`` seconds for the next.

        Raises:
            UnavailableError: Redis is unavailable; the next call subscribes again.
        """
        reports: list[LiveReport] = []
        message = self._message(timeout_s)
        while message is not None:
            reports += _parse(message[1])
            message = self._message(0) if len(reports) < _MAX_REPORTS else None
        return reports


def _parse(content: bytes) -> Sequence[LiveReport]:
    """Return the report of a message; none if another version of latentfarm wrote it in another form."""
    try:
        return (_REPORT.validate_json(content),)
    except ValidationError:
        return ()
