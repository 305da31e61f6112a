"""The state of an OpenAI batch, from its records and from the ledger's batch of the same name."""

from __future__ import annotations

from typing import Any

from latentfarm.batch_state import FINAL, BatchState
from latentfarm.errors import NotFoundError, UnavailableError
from latentfarm.farm import Farm
from latentfarm.ledger.records import BatchRecord
from latentfarm.server.openai import stored_batches
from latentfarm.server.openai.ids import stem_of
from latentfarm.server.openai.models import BatchAnswer, BatchErrors, BatchStatusWord, RequestCounts
from latentfarm.server.openai.stored_batches import StoredBatch
from latentfarm.storage.keys import header_key

_WORDS: dict[BatchState, BatchStatusWord] = {
    BatchState.OPENING: "validating",
    BatchState.COMPLETE: "completed",
    BatchState.CANCELLED: "cancelled",
}
_NO_COUNTS = RequestCounts(total=0, completed=0, failed=0)


def find_batch(farm: Farm, batch: str) -> tuple[StoredBatch, BatchAnswer] | None:
    """Return what a client has requested under an id, and its state; None if there is no such batch, or no more."""
    stored = stored_batches.read_batch(farm.bucket, batch)
    answer = describe(farm, stored) if stored else None
    return (stored, answer) if stored and answer else None


def describe(farm: Farm, stored: StoredBatch) -> BatchAnswer | None:
    """Return a batch in OpenAI's shape; None if it was deleted.

    A batch that no server submits is queued again: its own died before it did so.

    Raises:
        UnavailableError: the ledger was lost, and is not recovered yet.
    """
    record = find_record(farm, stored.id)
    if record is not None and record.state is not BatchState.DELETING:
        return _of_ledger(farm, stored, record)
    outcome = stored_batches.read_outcome(farm.bucket, stored.id)
    if outcome is None and record is None:
        return _of_queue(farm, stored)
    if outcome is None or outcome.status == "submitted":
        # it may have been submitted since the first look
        record = find_record(farm, stored.id)
        if record is not None and record.state is not BatchState.DELETING:
            return _of_ledger(farm, stored, record)
        if record is None and farm.bucket.exists(header_key(stored.id)):
            raise UnavailableError("the ledger has lost a batch: run `latentfarm recover`")
        return None
    if outcome.status == "cancelled":
        return _answer(stored, "cancelled", _NO_COUNTS, cancelling_at=outcome.at, cancelled_at=outcome.at)
    errors = BatchErrors(data=outcome.errors)
    return _answer(stored, "failed", _NO_COUNTS, failed_at=outcome.at, errors=errors)


def find_record(farm: Farm, batch: str) -> BatchRecord | None:
    """Return the ledger's batch, None if it has none of this name."""
    try:
        return farm.ledger.batch(batch)
    except NotFoundError:
        return None


def _of_queue(farm: Farm, stored: StoredBatch) -> BatchAnswer:
    cancelled_at = stored_batches.read_cancellation(farm.bucket, stored.id)
    _queue(farm, stored)
    if cancelled_at is not None:
        return _answer(stored, "cancelling", _NO_COUNTS, cancelling_at=cancelled_at)
    return _answer(stored, "validating", _NO_COUNTS)


def _queue(farm: Farm, stored: StoredBatch) -> None:
    if not farm.ledger.has_submission(stored.id):
        farm.ledger.queue_submission(stored.id)


def _of_ledger(farm: Farm, stored: StoredBatch, record: BatchRecord) -> BatchAnswer:
    if record.state is BatchState.OPENING:
        # after a recovery the queue is empty, and a submission that was interrupted is to go on
        _queue(farm, stored)
    status: BatchStatusWord = _WORDS.get(record.state, "in_progress")
    failed = record.failed + record.cancelled
    more: dict[str, Any] = {"in_progress_at": _seconds(record.opened_ms or record.first_ms)}
    if record.state in FINAL:
        ended_at = _seconds(record.ended_ms or record.last_ms)
        if status == "completed":
            more |= {"finalizing_at": ended_at, "completed_at": ended_at}
        else:
            cancelled_at = stored_batches.read_cancellation(farm.bucket, stored.id)
            more |= {"cancelling_at": cancelled_at or ended_at, "cancelled_at": ended_at}
        stem = stem_of(stored.id)
        more["output_file_id"] = output_id(stem) if record.done else None
        more["error_file_id"] = errors_id(stem) if failed else None
    return _answer(stored, status, RequestCounts(total=record.total, completed=record.done, failed=failed), **more)


def _answer(stored: StoredBatch, status: BatchStatusWord, counts: RequestCounts, **more: Any) -> BatchAnswer:
    return BatchAnswer(
        id=stored.id,
        endpoint=stored.endpoint,
        model=stored.models[0],
        input_file_id=stored.input_file_id,
        completion_window=stored.completion_window,
        status=status,
        created_at=stored.created_at,
        request_counts=counts,
        metadata=stored.metadata,
        **more,
    )


def output_id(stem: str) -> str:
    """Return the id of the output file of the batch with this stem."""
    return f"file-{stem}-output"


def errors_id(stem: str) -> str:
    """Return the id of the error file of the batch with this stem."""
    return f"file-{stem}-errors"


def _seconds(milliseconds: int) -> int | None:
    return milliseconds // 1000 or None
