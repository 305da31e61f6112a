"""Leases, batches and jobs as plain records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal

from pydantic_core import to_json

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import CLOSED, BatchState, PausedBy
from latentfarm.job_state import COMMITTED_STATES, INVALID_ROW, JobState

#: a row's error quotes the row, and no prompt is to be stored in Redis
_INVALID_ROW_MESSAGE = "the row is invalid; the manifest has the reason"
_PROMPTS = frozenset({"prompt", "negative_prompt"})
#: fields of a result line that come from the job's record, never from its receipt
_RECORD_FIELDS = frozenset({"job", "index", "state", "attempts", "error"})
#: of an error's message; a library's may have pages
_MESSAGE_CHARACTERS = 2_000

CommitOutcome = Literal["done", "full", "repeated", "stale", "deleting"]
FailOutcome = Literal["failed", "full", "retry", "stale"]
CrashOutcome = Literal["requeued", "poison", "stale"]


class Company(IntEnum):
    """With which other jobs a job may be rendered: one that had trouble is kept from others."""

    #: no trouble
    ANY = 0
    #: lost once: only with others that were lost once
    LOST = 1
    #: it was in a call that ended its worker, was lost twice, or failed: with no other job
    ALONE = 2


@dataclass(frozen=True)
class Lease:
    """A worker's right to render one job.

    ``epoch`` is higher than in every earlier call that leased jobs of the batch; those of one call share it.
    ``attempts`` were charged before this lease. ``created_ms`` is the creation of the batch: a deleted batch and a
    later one of its name differ in it. ``interactive``: a client waits for the image. ``urgent``: it takes the place of
    running images that are not; every interactive one does. ``checkpoint`` is the epoch of the checkpoint from which
    the job goes on, 0 for none. ``finish``: the job is rendered to its end also if its row has a ``draft``.
    """

    batch: str
    index: int
    epoch: int
    attempts: int
    created_ms: int = field(default=0, compare=False)
    company: Company = field(default=Company.ANY, compare=False)
    interactive: bool = field(default=False, compare=False)
    urgent: bool = field(default=False, compare=False)
    checkpoint: int = field(default=0, compare=False)
    finish: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """The job's id, ``<batch>/<index>``."""
        return f"{self.batch}/{self.index}"

    @property
    def queued_ms(self) -> int:
        """Milliseconds from the creation of the batch to the lease."""
        # an epoch is the time of its lease, in microseconds, or later
        return max(0, self.epoch // 1000 - self.created_ms)


def leases_of(run: Sequence[Any]) -> list[Lease]:
    """Return the leases on a run of jobs in the reply of the script."""
    batch, index, count, epoch, attempts, created_ms, company, urgency, checkpoint, finish = run
    return [
        Lease(
            batch=decode(batch),
            index=at,
            epoch=epoch,
            attempts=attempts,
            created_ms=created_ms,
            company=Company(company),
            interactive=urgency > 1,
            urgent=urgency > 0,
            checkpoint=checkpoint,
            finish=bool(finish),
        )
        for at in range(index, index + count)
    ]


@dataclass(frozen=True)
class Reservation:
    """The reply to a submission that reserves a name.

    ``digest`` is that of the batch that has the name now. ``stored`` jobs of it may be leased already, and
    ``parts_digest`` is the digest of their parts.
    """

    digest: str
    state: BatchState
    stored: int
    parts_digest: str


@dataclass(frozen=True)
class BatchSummary:
    """A batch's main facts. ``left`` jobs have not ended, ``leased`` ones among them; ``drafted`` ones have."""

    name: str
    model: str
    state: BatchState
    leased: int
    kind: BatchKind = BatchKind.SUBMITTED
    owner: str = ""
    priority: int = 0
    paused: bool = False
    left: int = 0
    drafted: int = 0

    @property
    def ended(self) -> bool:
        """Whether no job of it is to be rendered."""
        return self.state in CLOSED


@dataclass(frozen=True)
class BatchRecord:
    """A batch. Times are milliseconds of Redis ``TIME``, 0 if not reached.

    ``paused`` is the reason of a pause, as text. ``total`` grows while the state is opening. ``errors`` counts failed
    jobs by code; ``invalid`` of them had an invalid row. ``truncated`` done jobs had a prompt too long for the model.
    ``canary`` is the index from which jobs wait for `resume`, 0 for none. ``owner`` is the name of the API key that
    submitted the batch, empty for none. ``drafted`` jobs have ended as drafts: they can be finished or discarded.
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
    created_ms: int = 0
    opened_ms: int = 0
    ended_ms: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    images_per_s: float | None = None
    kind: BatchKind = BatchKind.SUBMITTED
    owner: str = ""
    drafted: int = 0

    @property
    def pending(self) -> int:
        """Jobs that wait for a lease."""
        return self.total - self.leased - self.done - self.failed - self.cancelled - self.drafted

    @property
    def complete(self) -> bool:
        """Whether every job has ended."""
        return self.state is BatchState.COMPLETE


@dataclass(frozen=True)
class JobRecord:
    """A job. ``receipt`` and ``error`` are None once its part is stored in the bucket.

    ``receipt_json`` is the receipt as ``receipt_text`` wrote it: a flush copies it, and never decodes it.
    """

    batch: str
    index: int
    state: JobState
    attempts: int
    worker: str | None
    error: dict[str, str] | None
    receipt_json: bytes | None

    @cached_property
    def receipt(self) -> dict[str, Any] | None:
        """What was done for the image."""
        return json.loads(self.receipt_json) if self.receipt_json else None


@dataclass(frozen=True)
class Snapshot:
    """Jobs of one part and of their batch, as they were at one moment.

    ``state`` is that of the batch, None if it is unknown. While ``retries`` stays, no ended job changes.
    ``generation`` is that of the object in the bucket that has the part's lines; 0 too if none has.
    """

    state: BatchState | None
    retries: int
    generation: int
    jobs: list[JobRecord]


#: fields of ``{lf}:batch:<b>`` that a summary is made of
SUMMARY_FIELDS = (
    *("model", "state", "account", "priority", "paused_by"),
    *("leased", "total", "done", "failed", "cancelled", "drafted"),
)


def batch_summary(name: str, facts: Sequence[Any]) -> BatchSummary:
    """Return a summary of the values of ``SUMMARY_FIELDS``."""
    model, state, account, priority, paused_by, *counters = facts
    leased, total, done, failed, cancelled, drafted = map(int, counters)
    kind, owner = split_account(account)
    return BatchSummary(
        name=name,
        model=decode(model),
        state=BatchState(decode(state)),
        leased=leased,
        kind=kind,
        owner=owner,
        priority=int(priority),
        paused=bool(paused_by),
        left=total - done - failed - cancelled - drafted,
        drafted=drafted,
    )


def batch_record(name: str, facts: Mapping[str, str], errors: dict[str, int], rate: float | None) -> BatchRecord:
    """Return a record of the fields of ``{lf}:batch:<b>``."""
    kind, owner = split_account(facts.get("account"))
    counters = ("total", "leased", "done", "failed", "cancelled", "drafted", "invalid")
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
        created_ms=int(facts.get("created_ms", 0)),
        opened_ms=int(facts.get("opened_ms", 0)),
        ended_ms=int(facts.get("ended_ms", 0)),
        errors=errors,
        images_per_s=rate,
        kind=kind,
        owner=owner,
        **{number: int(facts[number]) for number in (*counters, "priority", "canary", "retries")},
    )


def job_record(
    batch: str,
    index: int,
    state: JobState,
    attempts: bytes | None,
    error: bytes | None,
    receipt: bytes | None,
    holder: bytes | None,
) -> JobRecord:
    """Return a record of the values that Redis has for one job."""
    # charged attempts are those that went wrong; the attempt that runs or succeeded is not among them
    uncharged = state in {JobState.LEASED, *COMMITTED_STATES}
    return JobRecord(
        batch=batch,
        index=index,
        state=state,
        attempts=int(attempts or 0) + int(uncharged),
        worker=decode(holder).partition(" ")[2] if holder else None,
        error=json.loads(error) if error and state not in COMMITTED_STATES else None,
        # that of a draft stays until its cancelled job is flushed
        receipt_json=(receipt or None) if state in COMMITTED_STATES else None,
    )


def account_of(kind: BatchKind, owner: str) -> str:
    """Return a batch's kind and owner as one text for Redis."""
    return f"{kind}/{owner}"


def split_account(account: Any) -> tuple[BatchKind, str]:
    """Return the kind and the owner in a text of ``account_of``."""
    kind, _, owner = decode(account or "").partition("/")
    return BatchKind(kind or BatchKind.SUBMITTED), owner


def is_truncated(receipt: Mapping[str, Any]) -> bool:
    """Return whether a prompt was longer than the model encodes, so that its end was cut."""
    return any(bool(receipt.get(name)) for name in ("prompt_truncated", "negative_prompt_truncated"))


def receipt_text(receipt: Mapping[str, Any]) -> bytes:
    """Return a receipt as JSON for Redis, an object that begins with its worker.

    Prompts are left out: only the manifest and the image have them. So are fields that a result line has of the job's
    record: an image in the bucket may name any.
    """
    stored = {"worker": None, **receipt}
    if "request" in stored:
        stored["request"] = {name: value for name, value in stored["request"].items() if name not in _PROMPTS}
    for name in _RECORD_FIELDS & stored.keys():
        del stored[name]
    # a third of json's time
    return to_json(stored)


def error_text(error: Mapping[str, str]) -> str:
    """Return an error as JSON for Redis. The message of an invalid row is replaced, because it quotes the row."""
    message = _INVALID_ROW_MESSAGE if error["code"] == INVALID_ROW else error.get("message", "")[:_MESSAGE_CHARACTERS]
    return json.dumps({**error, "message": message}, ensure_ascii=False)


def decode(value: Any) -> str:
    """Return a reply of Redis as text."""
    return value.decode() if isinstance(value, bytes) else str(value)
