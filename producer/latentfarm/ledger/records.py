"""What the ledger tells: leases, batches and jobs as plain records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from latentfarm.batch_state import BatchState, PausedBy
from latentfarm.job import JobState

#: as ``manifest.INVALID_ROW``, which this layer does not import
_INVALID_ROW = "invalid_row"
_WRONG_ROW = "the row was wrong; the manifest says how"
_PROMPTS = frozenset({"prompt", "negative_prompt"})
#: of an error's message; a library's may go on for pages
_MESSAGE_CHARACTERS = 2_000

CommitOutcome = Literal["done", "full", "again", "stale", "deleting"]
FailOutcome = Literal["failed", "full", "retry", "stale"]


@dataclass(frozen=True)
class Lease:
    """A worker's right to render one job.

    ``epoch`` rises with every lease of the batch. ``attempts`` were charged before; ``queued_ms`` have passed since the
    batch was submitted.
    """

    batch: str
    index: int
    epoch: int
    attempts: int
    queued_ms: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """The job's id, ``<batch>/<index>``."""
        return f"{self.batch}/{self.index}"


@dataclass(frozen=True)
class Reservation:
    """The answer to a submission that takes a batch's name.

    ``digest`` is that of the batch that has the name now; ``stored`` jobs of it can be leased already, and
    ``parts_digest`` is the digest of their parts. ``fresh``: nobody had the name before.
    """

    digest: str
    state: BatchState
    stored: int
    parts_digest: str
    fresh: bool


@dataclass(frozen=True)
class BatchRecord:
    """What the ledger knows of a batch. Times are milliseconds of Redis ``TIME``, 0 where not reached.

    ``state`` is opening, open, complete, cancelled or deleting; ``paused`` is the reason of a pause, or empty.
    ``total`` grows while the state is opening. ``errors`` are the failed jobs by code, ``invalid`` those of them that
    were wrong rows of the prompt file; ``truncated`` are the done ones whose text lost its end.
    """

    name: str
    model: str
    digest: str
    parts_digest: str
    state: BatchState
    paused: str
    paused_by: PausedBy
    total: int
    leased: int
    done: int
    failed: int
    cancelled: int
    invalid: int
    truncated: int
    priority: int
    canary: int
    retries: int
    webhook: str
    first_ms: int
    last_ms: int
    errors: dict[str, int] = field(default_factory=dict)
    images_per_s: float | None = None

    @property
    def pending(self) -> int:
        """Jobs that wait for a lease."""
        return self.total - self.leased - self.done - self.failed - self.cancelled

    @property
    def complete(self) -> bool:
        """Whether every job has ended."""
        return self.state is BatchState.COMPLETE


@dataclass(frozen=True)
class JobRecord:
    """What the ledger knows of a job; ``receipt`` is None once its part was flushed to the bucket."""

    batch: str
    index: int
    state: JobState
    attempts: int
    worker: str | None
    error: dict[str, str] | None
    receipt: dict[str, Any] | None


@dataclass(frozen=True)
class Throughput:
    """What the workers of a model have measured so far.

    ``work`` counts pixels x steps x U-Net rows (two with guidance), so that jobs of any size can be compared;
    ``busy_s`` are the seconds of engine time that it took, ``size_bytes`` and ``pixels`` those of the pictures.
    """

    images: float
    work: float
    busy_s: float
    size_bytes: float
    pixels: float


def batch_record(name: str, facts: Mapping[str, str], errors: dict[str, int], rate: float | None) -> BatchRecord:
    """Return the record that the fields of the batch's hash make."""
    numbers = ("total", "leased", "done", "failed", "cancelled", "invalid", "priority", "canary", "retries")
    return BatchRecord(
        name=name,
        model=facts["model"],
        digest=facts["digest"],
        parts_digest=facts["parts_digest"],
        state=BatchState(facts["state"]),
        paused=facts["paused"],
        paused_by=PausedBy(facts["paused_by"]),
        truncated=int(facts.get("truncated", 0)),
        webhook=facts["webhook_state"],
        first_ms=int(facts.get("first_ms", 0)),
        last_ms=int(facts.get("last_ms", 0)),
        errors=errors,
        images_per_s=rate,
        **{number: int(facts[number]) for number in numbers},
    )


def job_record(
    batch: str,
    index: int,
    found: JobState,
    attempts: bytes | None,
    error: bytes | None,
    receipt: bytes | None,
    holder: bytes | None,
) -> JobRecord:
    """Return the record that the ledger's answers about one job make."""
    # charged attempts are those that went wrong; the one that runs or ended well comes on top
    running = found in {JobState.LEASED, JobState.DONE}
    return JobRecord(
        batch=batch,
        index=index,
        state=found,
        attempts=int(attempts or 0) + int(running),
        worker=decode(holder).partition(" ")[2] if holder else None,
        error=json.loads(error) if error and found is not JobState.DONE else None,
        receipt=json.loads(receipt) if receipt else None,
    )


def is_truncated(receipt: Mapping[str, Any]) -> bool:
    """Tell whether a text of a picture was longer than what its model encodes, and lost its end."""
    return any(bool(receipt.get(name)) for name in ("prompt_truncated", "negative_prompt_truncated"))


def receipt_text(receipt: Mapping[str, Any]) -> str:
    """Return a receipt as Redis holds it: without the prompts, which only the manifest and the image hold."""
    if "request" in receipt:
        request = {name: value for name, value in receipt["request"].items() if name not in _PROMPTS}
        receipt = {**receipt, "request": request}
    return json.dumps(receipt, ensure_ascii=False)


def error_text(error: Mapping[str, str]) -> str:
    """Return an error as Redis holds it: of a wrong row only that it was, for what the manifest says quotes the row."""
    message = _WRONG_ROW if error["code"] == _INVALID_ROW else error.get("message", "")[:_MESSAGE_CHARACTERS]
    return json.dumps({**error, "message": message}, ensure_ascii=False)


def decode(value: Any) -> str:
    """Return what Redis answered as text."""
    return value.decode() if isinstance(value, bytes) else str(value)
