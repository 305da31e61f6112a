"""Submits the batches that clients have created, on a thread of each server.

The queue is in the ledger. A submission that its server does not end, because it was killed or the store is
unavailable, is continued by any server when its claim has run out.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import anyio

from latentfarm.batch import Batch
from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState
from latentfarm.errors import ConflictError, InputError, LatentfarmError, UnavailableError
from latentfarm.farm import Farm
from latentfarm.inputs.resolver import InputResolver
from latentfarm.job import Defaults
from latentfarm.server.openai import stored_batches, stored_files
from latentfarm.server.openai.batch_state import find_record
from latentfarm.server.openai.models import BatchError
from latentfarm.server.openai.stored_batches import Outcome, StoredBatch
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.prompts import ReadOptions, RowError
from latentfarm.submission.prompts.sources import S3Source
from latentfarm.submission.request import Request, SubmitOptions
from latentfarm.submission.validation import VALIDATE_FIRST_ROWS

log = logging.getLogger(__name__)

#: seconds that a claim is held without being extended, and between two extensions
_CLAIM_S, _EXTEND_S = 20.0, 5.0
#: seconds until the queue is polled again
_POLL_S = 1.0
#: a small batch need not wait for a large one
_THREADS = 2
#: rows between two reads of the clock
_ROWS_PER_CHECK = 1_000
#: lines that a failed batch lists
_MAX_ERRORS = 20
_LINE = re.compile(r" line (\d+)")
#: what a submission adds to the reason why it stopped
_STOPPED = re.compile(r"; (?:nothing was enqueued|batch \S+ is paused with)")


class _ClaimLostError(Exception):
    """Another server has the submission now."""


class _EndingError(Exception):
    """The server is ending."""


class BatchSubmitter:
    """Submits batches, two at once, until the server ends."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._wake = threading.Event()
        self._ending = threading.Event()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Submit in the background."""
        # daemons: a store that hangs must not delay the end, and another server continues
        threads = [threading.Thread(target=self._run, name="submissions", daemon=True) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ending.set()
            self._wake.set()
            for thread in threads:
                await anyio.to_thread.run_sync(thread.join, _POLL_S)

    def wake(self) -> None:
        """Poll the queue now."""
        self._wake.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                claimed = self._farm.ledger.claim_submission(_CLAIM_S)
                if claimed is not None:
                    _Submission(self._farm, *claimed, ending=self._ending).run()
                    continue
            except LatentfarmError as error:
                log.warning("batches are not submitted now: %s", error)
            except Exception:
                log.exception("batches are not submitted now")
            if self._wake.wait(_POLL_S) and not self._ending.is_set():
                self._wake.clear()


class _Submission:
    """One submission, while this server has its claim."""

    def __init__(self, farm: Farm, batch: str, claim: int, *, ending: threading.Event) -> None:
        self._farm = farm
        self._batch = batch
        self._claim = claim
        self._ending = ending
        self._extended = time.monotonic()

    def run(self) -> None:
        """Submit the batch, or record why it cannot be."""
        stored = stored_batches.read_batch(self._farm.bucket, self._batch)
        if stored is None:
            # it was removed
            self._farm.ledger.resolve_submission(self._batch, self._claim)
            return
        try:
            outcome = self._outcome(stored)
        except _ClaimLostError:
            log.warning("the submission of %s was taken over by another server", self._batch)
        except _EndingError:
            self._farm.ledger.extend_submission(self._batch, self._claim, 0)
        except UnavailableError as error:
            log.warning("the submission of %s continues in %d s: %s", self._batch, _CLAIM_S, error)
        else:
            if outcome is not None:
                self._end(outcome)

    def _outcome(self, stored: StoredBatch) -> Outcome | None:
        """Return how the submission ended, None if it is to be tried again."""
        if recorded := stored_batches.read_outcome(self._farm.bucket, self._batch):
            # the server that recorded it died before it took the submission from the queue
            return recorded
        try:
            return self._submit(stored)
        except InputError as error:
            return self._new("failed", [_error("invalid_input_file", _reason(str(error)))])
        except (_ClaimLostError, _EndingError, LatentfarmError):
            raise
        except Exception:
            log.exception("the submission of %s fails", self._batch)
            return self._new("failed", [BatchError(code="internal_error", message="the server's log has the reason")])

    def _submit(self, stored: StoredBatch) -> Outcome | None:
        """Submit the batch, or continue it.

        Raises:
            InputError: the file cannot be read.
        """
        known = find_record(self._farm, self._batch) is not None
        if not known and self._cancelled():
            return self._new("cancelled")
        request = make_request(self._farm, stored)
        request = request.with_facts(self._farm.facts_for(request, self._batch))
        if not known and (errors := self._errors(request)):
            return self._new("failed", errors)
        options = SubmitOptions(
            failure_budget=0, max_invalid=1, validate_first=False, kind=BatchKind.OPENAI, owner=stored.owner
        )
        try:
            self._farm.enqueue(request, options, batch=self._batch, progress=self._check)
        except ConflictError as error:
            return self._of_conflict(error, request.digest)
        # a cancellation is recorded before its server reads the ledger
        self._cancel_if_wanted()
        return self._new("submitted")

    def _of_conflict(self, error: ConflictError, digest: str) -> Outcome | None:
        record = find_record(self._farm, self._batch)
        if record is None or record.state in {BatchState.CANCELLED, BatchState.DELETING}:
            return self._new("submitted")
        if record.digest != digest:
            # an update of latentfarm between two servers may read a file otherwise
            return self._new("failed", [_error("conflict", str(error))])
        # the server that had the claim before has stored one more part, after this one had read their number
        log.warning("the submission of %s continues in %d s: %s", self._batch, _CLAIM_S, error)
        return None

    def _errors(self, request: Request) -> list[BatchError]:
        """Return why the file cannot be submitted, by reading its first 100,000 lines: none of them is valid.

        Raises:
            InputError: it cannot be read so far.
        """
        errors: list[BatchError] = []
        for number, (_, row) in enumerate(request.rows()):
            if not isinstance(row, RowError):
                return []
            if len(errors) < _MAX_ERRORS:
                errors.append(_error("invalid_line", row.text, param=row.reason))
            if number % _ROWS_PER_CHECK == 0:
                self._check()
            if number == VALIDATE_FIRST_ROWS:
                break
        return errors

    def _new(self, status: Literal["submitted", "failed", "cancelled"], errors: Sequence[BatchError] = ()) -> Outcome:
        return Outcome(status=status, at=self._farm.ledger.now_s(), errors=list(errors))

    def _check(self, _jobs: int = 0) -> None:
        """Keep the claim, and stop if the server ends or the batch is cancelled."""
        if self._ending.is_set():
            raise _EndingError
        now = time.monotonic()
        if now - self._extended < _EXTEND_S:
            return
        self._extended = now
        if not self._farm.ledger.extend_submission(self._batch, self._claim, _CLAIM_S):
            raise _ClaimLostError
        self._cancel_if_wanted()

    def _cancelled(self) -> bool:
        return stored_batches.read_cancellation(self._farm.bucket, self._batch) is not None

    def _cancel_if_wanted(self) -> None:
        record = find_record(self._farm, self._batch)
        if record is not None and record.state in {BatchState.OPENING, BatchState.OPEN} and self._cancelled():
            Batch(self._farm.connection, self._batch).cancel(flush=False)

    def _end(self, outcome: Outcome) -> None:
        """Record the outcome. A batch that has failed leaves nothing but its record."""
        stored_batches.write_outcome(self._farm.bucket, self._batch, outcome)
        if outcome.status == "failed" and find_record(self._farm, self._batch) is not None:
            Batch(self._farm.connection, self._batch).delete()
        self._farm.ledger.resolve_submission(self._batch, self._claim)


def make_request(farm: Farm, stored: StoredBatch) -> Request:
    """Return the request that a batch's input file is.

    Raises:
        InputError: the file was deleted.
    """
    if stored_files.read_record(farm.bucket, stored.input_file_id, farm.ledger.now_s()) is None:
        raise InputError(f"the file {stored.input_file_id} was deleted before it was read; upload it again")
    reading = ReadOptions(format="jsonl", models=stored.models)
    url = f"s3://{farm.bucket.name}/{stored_files.content_key(stored.input_file_id)}"
    source = S3Source(farm.bucket.client, url, reading)
    # for messages
    source.name = stored.filename
    inputs = InputResolver(stored_files.input_policy(farm))
    return Request(source, stored.models[0], Defaults(), Expansion.parse(), reading, inputs=inputs)


def _reason(text: str) -> str:
    """Return the reason of a failed submission without the outcome: its batch is deleted here."""
    if text.startswith("s3://"):
        # the text names the store
        return "the file was deleted while it was read; upload it again"
    return _STOPPED.split(text)[0]


def _error(code: str, message: str, *, param: str | None = None) -> BatchError:
    found = _LINE.search(message)
    return BatchError(code=code, message=message, param=param, line=int(found[1]) if found else None)
