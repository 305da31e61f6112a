"""What a batch reports about its progress."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import FINAL, BatchState, PausedBy, describe_pause
from latentfarm.ledger import BatchRecord


class BatchStatus(BaseModel):
    """A batch's progress.

    ``total`` grows while the state is OPENING.
    ``paused`` describes the pause, such as ``by its user: lunch``; empty if the batch is not paused.
    ``errors`` counts failed jobs by code.
    ``drafted`` counts the jobs that have ended as drafts: they can be finished or discarded.
    ``truncated`` counts done jobs whose prompt or negative prompt was cut at the model's token limit.
    ``webhook`` is empty, ``due``, ``sent`` or ``failed``.
    ``images_per_s`` covers the last two minutes; of a final batch, its whole run.
    ``eta_s`` is None while the speed is unknown.
    ``owner`` is the name of the API key that submitted the batch, empty for none.
    ``created`` is the time of its submission; if the ledger had lost it, of its recovery.
    """

    model_config = ConfigDict(frozen=True)

    batch: str
    model: str
    state: BatchState
    paused: str
    paused_by: PausedBy
    priority: int
    total: int
    pending: int
    leased: int
    done: int
    failed: int
    cancelled: int
    drafted: int
    errors: dict[str, int]
    truncated: int
    webhook: str
    images_per_s: float | None
    eta_s: float | None
    kind: BatchKind = BatchKind.SUBMITTED
    owner: str = ""
    created: datetime

    @property
    def ended(self) -> int:
        """Number of jobs that are done, failed, cancelled or drafted."""
        return self.done + self.failed + self.cancelled + self.drafted

    @property
    def complete(self) -> bool:
        """Whether every job is done, failed or discarded."""
        return self.state is BatchState.COMPLETE

    @property
    def is_final(self) -> bool:
        """Whether no job changes by itself any more: the batch is complete, cancelled or drafted."""
        return self.state in FINAL or self.state is BatchState.DRAFTED

    @property
    def succeeded(self) -> bool:
        """Whether every job has ended as it was submitted: as an image, or as a draft that may have been discarded."""
        return self.state in {BatchState.COMPLETE, BatchState.DRAFTED} and not self.failed

    @property
    def needs_attention(self) -> bool:
        """Whether it is paused, and not by its user: it continues only after ``resume``."""
        return self.state is BatchState.PAUSED and self.paused_by is not PausedBy.USER


def batch_status(record: BatchRecord) -> BatchStatus:
    """Return the progress of the batch of a record."""
    left = record.pending + record.leased
    rate = record.images_per_s
    return BatchStatus(
        batch=record.name,
        model=record.model,
        state=_reported_state(record),
        paused=describe_pause(record.paused_by, record.paused),
        paused_by=record.paused_by,
        priority=record.priority,
        total=record.total,
        pending=record.pending,
        leased=record.leased,
        done=record.done,
        failed=record.failed,
        cancelled=record.cancelled,
        drafted=record.drafted,
        errors=record.errors,
        truncated=record.truncated,
        webhook=record.webhook,
        images_per_s=rate,
        eta_s=left / rate if rate and left else (0.0 if not left else None),
        kind=record.kind,
        owner=record.owner,
        created=datetime.fromtimestamp(record.created_ms / 1000, UTC),
    )


def _reported_state(record: BatchRecord) -> BatchState:
    if record.paused_by:
        return BatchState.PAUSED
    settled = record.state is BatchState.OPEN and record.drafted and not record.pending + record.leased
    return BatchState.DRAFTED if settled else record.state
