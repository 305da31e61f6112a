"""Result lines: written from the ledger to ``results/part-*.jsonl.gz``, and read from both.

Each object has a generation in its key: the batch's ``retries`` when its lines were read. All writers of a generation
write the same lines. The ledger has the generation that counts, so a writer that was slow changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Self

from latentfarm.batch_state import BatchState
from latentfarm.errors import InputError, UnavailableError
from latentfarm.job_state import COMMITTED_STATES, TERMINAL_STATES, JobState
from latentfarm.ledger import JobRecord, Ledger, Snapshot
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import (
    header_key,
    parse_results_key,
    part_indices,
    part_of,
    results_key,
    results_prefix,
)
from latentfarm.storage.part_codec import compress, dump_line, unpack

log = logging.getLogger(__name__)

#: parts that one call of ``flush_due`` stores
_FLUSH_LIMIT = 100


class MissingResultsError(UnavailableError):
    """The bucket has no object for lines that the ledger has dropped. Some stores answer so just after a put."""


# -- writing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartFlush:
    """The lines of a part on their way to the bucket, for one generation. Any step may come late, or never."""

    batch: str
    part: int
    generation: int
    body: bytes = field(repr=False)

    @classmethod
    def read(cls, ledger: Ledger, bucket: Bucket, batch: str, part: int) -> Self | None:
        """Read the lines; None if they cannot be stored now, as a job has not ended or the batch is not settled.

        Raises:
            InputError: the batch is unknown, or the part's object is not ours.
        """
        snapshot, stored = _read_snapshot(ledger, bucket, batch, part_indices(part, ledger.batch(batch).total))
        if snapshot.state in {None, BatchState.RECOVERING, BatchState.DELETING}:
            return None
        if not snapshot.jobs or any(record.state not in TERMINAL_STATES for record in snapshot.jobs):
            return None
        lines = [_encode_line(record, stored) for record in snapshot.jobs]
        return cls(batch, part, snapshot.retries, compress(b"".join(lines)))

    @property
    def key(self) -> str:
        """The key of the object."""
        return results_key(self.batch, self.part, self.generation)

    def put(self, bucket: Bucket) -> None:
        """Store the lines. They do not count before ``drop``."""
        bucket.put(self.key, self.body, content_type="application/gzip")

    def drop(self, ledger: Ledger) -> bool:
        """Let the object count and remove the part's receipts from the ledger. False if the lines are outdated."""
        return ledger.drop_flushed(self.batch, self.part, retries=self.generation)

    def remove_outdated(self, ledger: Ledger, bucket: Bucket) -> None:
        """Remove objects that do not count any more, of this writer and of others that died before they did so.

        An object whose generation is above the one that counts stays: a recovery may take it.
        """
        state, generation = ledger.flushed(self.batch, self.part)
        if state is BatchState.DELETING or (state is None and not any(bucket.keys(header_key(self.batch)))):
            # the deletion may have listed the bucket before this object was stored
            bucket.delete([self.key])
        elif state is not None and generation:
            keys = bucket.keys(results_prefix(self.batch, self.part))
            _delete_outdated(bucket, {self.part: generation}, keys)


def flush_part(ledger: Ledger, bucket: Bucket, batch: str, part: int) -> bool:
    """Store a part whose jobs have all ended, then remove its receipts from the ledger; return whether it is stored.

    Several callers may flush one part at the same time: receipts that the ledger no longer has are read from the
    bucket, so all of them write the same lines.
    """
    flush = PartFlush.read(ledger, bucket, batch, part)
    if flush is None:
        return False
    flush.put(bucket)
    stored = flush.drop(ledger)
    if flush.generation or not stored:
        flush.remove_outdated(ledger, bucket)
    return stored


def flush_due(ledger: Ledger, bucket: Bucket, *, limit: int = _FLUSH_LIMIT) -> int:
    """Flush up to ``limit`` parts that are due and that no other worker flushes now; return how many were stored.

    A part that is damaged is due again later, and blocks no other.
    """
    stored = 0
    for _ in range(limit):
        claimed = ledger.claim_full_part()
        if claimed is None:
            break
        batch, part = claimed
        try:
            if flush_part(ledger, bucket, batch, part):
                stored += 1
            else:
                # a retry or a recovery came between
                ledger.postpone_flush(batch, part, damaged=False)
        except (InputError, MissingResultsError) as error:
            delay_s = ledger.postpone_flush(batch, part, damaged=True)
            log.warning("part %d of %s is not flushed, retrying in %d s: %s", part, batch, delay_s, error)
        except Exception as error:
            with suppress(UnavailableError):
                # an error that nothing foresaw may be of this part only: it waits longer each time
                ledger.postpone_flush(batch, part, damaged=not isinstance(error, UnavailableError))
            raise
    return stored


def flush_batch(ledger: Ledger, bucket: Bucket, batch: str) -> int:
    """Flush every part of one batch that is to be flushed, claimed or not; return how many were stored."""
    stored = 0
    for name, part in ledger.full_parts():
        if name == batch:
            try:
                stored += flush_part(ledger, bucket, batch, part)
            except (InputError, MissingResultsError) as error:
                log.warning("part %d of %s is not flushed: %s", part, batch, error)
    return stored


# -- the objects of a batch --------------------------------------------------------------------------------------


def list_generations(bucket: Bucket, batch: str) -> dict[int, int]:
    """Return the highest generation in the bucket of each part that is there."""
    highest: dict[int, int] = {}
    for key in bucket.keys(results_prefix(batch)):
        if parsed := parse_results_key(key):
            part, generation = parsed
            highest[part] = max(generation, highest.get(part, 0))
    return highest


def collect_outdated(ledger: Ledger, bucket: Bucket, batch: str) -> int:
    """Remove result objects that do not count any more, where their writers died first; return how many."""
    keys: dict[int, list[str]] = {}
    for key in bucket.keys(results_prefix(batch)):
        if parsed := parse_results_key(key):
            keys.setdefault(parsed[0], []).append(key)
    several = {part: found for part, found in keys.items() if len(found) > 1}
    current = {part: ledger.flushed(batch, part)[1] for part in several}
    return _delete_outdated(bucket, current, [key for found in several.values() for key in found])


def _delete_outdated(bucket: Bucket, current: Mapping[int, int], keys: Iterable[str]) -> int:
    """Delete those of one batch's result objects whose generation is below the current one of their part."""
    outdated = [key for key in keys if (parsed := parse_results_key(key)) and parsed[1] < current.get(parsed[0], 0)]
    bucket.delete(outdated)
    return len(outdated)


def read_part(bucket: Bucket, batch: str, part: int, generation: int = 0) -> list[dict[str, Any]]:
    """Return the result lines of a part.

    Raises:
        MissingObjectError: the object is not in the bucket.
        InputError: it is not a part of results.
    """
    key = results_key(batch, part, generation)
    lines = unpack(bucket.get(key), name=key)
    for line in lines:
        if not isinstance(line.get("index"), int) or not isinstance(line.get("state"), str):
            raise InputError(f"{key} has a line without index or state; latentfarm writes no such line")
        if "trace" in line:
            # written by latentfarm 0.1
            line["intermediates"] = line.pop("trace")
    return lines


# -- reading -----------------------------------------------------------------------------------------------------


def read_range(ledger: Ledger, bucket: Bucket, batch: str, indices: range) -> Iterator[dict[str, Any]]:
    """Yield the result lines of jobs of one part.

    Raises:
        MissingResultsError: the bucket has no object for lines that the ledger has dropped.
        InputError: the object is not ours, or lacks such a line.
    """
    snapshot, stored = _read_snapshot(ledger, bucket, batch, indices)
    yield from (_merged(record, stored) for record in snapshot.jobs)


def read_indices(ledger: Ledger, bucket: Bucket, batch: str, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield the result lines of jobs given by rising indices, from the ledger or the bucket.

    At most one object a part is read.
    """
    for _, group in groupby(indices, key=part_of):
        wanted = list(group)
        span = range(wanted[0], wanted[-1] + 1)
        lines = {line["index"]: line for line in read_range(ledger, bucket, batch, span)}
        yield from (lines[index] for index in wanted)


@dataclass(frozen=True)
class _StoredLines:
    """The lines of the object ``key``, by index, where the ledger has dropped some of them."""

    key: str = ""
    lines: Mapping[int, dict[str, Any]] = field(default_factory=dict)


def _read_snapshot(ledger: Ledger, bucket: Bucket, batch: str, indices: range) -> tuple[Snapshot, _StoredLines]:
    """Return jobs of one part, with the lines that the bucket has of them if the ledger has dropped any."""
    snapshot, part = ledger.snapshot(batch, indices), part_of(indices.start)
    while any(map(_is_flushed, snapshot.jobs)):
        try:
            # a receipt leaves the ledger after its line is stored, so this order misses none
            lines = {line["index"]: line for line in read_part(bucket, batch, part, snapshot.generation)}
        except MissingObjectError as error:
            before, snapshot = snapshot.generation, ledger.snapshot(batch, indices)
            # another flush may have removed the object since, for a newer one
            if snapshot.generation == before:
                raise _missing_results(snapshot, str(error)) from error
        else:
            return snapshot, _StoredLines(results_key(batch, part, snapshot.generation), lines)
    return snapshot, _StoredLines()


def _merged(record: JobRecord, stored: _StoredLines) -> dict[str, Any]:
    """Return the line of a job: the stored one if the ledger has dropped it."""
    if not _is_flushed(record):
        return result_line(record)
    line = stored.lines.get(record.index)
    if line is None or line["state"] != record.state.word:
        found = "has no line" if line is None else f"has the state {line['state']!r}"
        raise InputError(
            f"{stored.key} {found} for job {record.batch}/{record.index}, which is {record.state.word} in the ledger; "
            f"run `latentfarm recover {record.batch}`"
        )
    return {**result_line(record), **line}


def _encode_line(record: JobRecord, stored: _StoredLines) -> bytes:
    """Return the line of a job as JSON. Its receipt is copied: to decode and encode it takes most of a flush's time."""
    if record.receipt_json is None:
        return dump_line(_merged(record, stored))
    # the receipt begins with the worker, and is never empty
    return dump_line(_own_fields(record))[:-2] + b"," + record.receipt_json[1:] + b"\n"


def _missing_results(snapshot: Snapshot, reason: str) -> Exception:
    if snapshot.state in {None, BatchState.DELETING}:
        return InputError("the batch is being deleted")
    return MissingResultsError(
        f"{reason}, but the ledger has dropped its lines; if it stays so, run `latentfarm recover`", cause="store"
    )


def _is_flushed(record: JobRecord) -> bool:
    """Return whether the receipt or the error of an ended job is in the bucket only."""
    committed = record.state in COMMITTED_STATES and record.receipt_json is None
    return committed or (record.state is JobState.FAILED and record.error is None)


def result_line(record: JobRecord) -> dict[str, Any]:
    """Return a job's record as a line of ``results/``."""
    line = {**_own_fields(record), "worker": record.worker}
    if record.error is not None:
        line["error"] = record.error
    if record.receipt is not None:
        line |= record.receipt
    return line


def _own_fields(record: JobRecord) -> dict[str, Any]:
    return {
        "job": f"{record.batch}/{record.index}",
        "index": record.index,
        "state": record.state.word,
        "attempts": record.attempts,
    }
