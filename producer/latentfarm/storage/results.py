"""Result lines: written from the ledger to ``results/part-*.jsonl.gz``, and read from both."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from latentfarm.errors import InputError
from latentfarm.job_state import TERMINAL_STATES, JobState
from latentfarm.ledger import JobRecord, Ledger
from latentfarm.limits import PART_JOBS
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import part_indices, part_of, results_key
from latentfarm.storage.part_codec import pack, unpack

log = logging.getLogger(__name__)


def flush_part(ledger: Ledger, bucket: Bucket, batch: str, part: int) -> int:
    """Store a part whose jobs have all ended, then remove its receipts from the ledger; return the number of lines.

    Several workers may flush one part at the same time: receipts that the ledger no longer has are read from the
    bucket, so all of them write the same lines.
    """
    record = ledger.batch(batch)
    lines = list(read_range(ledger, bucket, batch, part_indices(part, record.total)))
    bucket.put(results_key(batch, part), pack(lines), content_type="application/gzip")
    ledger.drop_flushed(batch, part, retries=record.retries)
    return len(lines)


def flush_full_parts(ledger: Ledger, bucket: Bucket, *, batch: str | None = None) -> int:
    """Flush every part in the queue, of one batch or of all; return how many were flushed."""
    parts = [(name, part) for name, part in ledger.full_parts() if batch in {None, name}]
    flushed = 0
    for name, part in parts:
        try:
            flush_part(ledger, bucket, name, part)
            flushed += 1
        except InputError as error:
            # one batch that was tampered with must not block the results of the others
            log.warning("part %d of %s is not flushed: %s", part, name, error)
    return flushed


def read_part(bucket: Bucket, batch: str, part: int) -> list[dict[str, Any]]:
    """Return the result lines of a part; none if it is not flushed yet.

    Raises:
        InputError: the object is not a part of results.
    """
    try:
        key = results_key(batch, part)
        lines = unpack(bucket.get(key), name=key)
    except MissingObjectError:
        return []
    for line in lines:
        if "trace" in line:
            # written by latentfarm 0.1
            line["intermediates"] = line.pop("trace")
    return lines


def read_results(ledger: Ledger, bucket: Bucket, batch: str, total: int) -> Iterator[dict[str, Any]]:
    """Yield a result line for every job of the batch, in order, from the ledger or the bucket."""
    for part in range(-(-total // PART_JOBS)):
        yield from read_range(ledger, bucket, batch, part_indices(part, total))


def read_range(ledger: Ledger, bucket: Bucket, batch: str, indices: range) -> Iterator[dict[str, Any]]:
    """Yield the result lines of jobs of one part."""
    records = ledger.jobs(batch, indices)
    stored: dict[int, dict[str, Any]] = {}
    # a receipt leaves the ledger after its part is stored, so this order misses none
    if any(_is_flushed(record) for record in records):
        stored = {line["index"]: line for line in read_part(bucket, batch, indices.start // PART_JOBS)}
    for record in records:
        line = result_line(record)
        kept = stored.get(record.index)
        yield {**line, **kept} if kept is not None and _is_flushed(record) else line


def read_indices(ledger: Ledger, bucket: Bucket, batch: str, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield the result lines of jobs given by rising indices. Reads at most one object a part."""
    for _, group in groupby(indices, key=part_of):
        wanted = list(group)
        span = range(wanted[0], wanted[-1] + 1)
        lines = {line["index"]: line for line in read_range(ledger, bucket, batch, span)}
        yield from (lines[index] for index in wanted)


def _is_flushed(record: JobRecord) -> bool:
    """Return whether the receipt or the error of an ended job is in the bucket only."""
    done = record.state is JobState.DONE and record.receipt is None
    return done or (record.state is JobState.FAILED and record.error is None)


def result_line(record: JobRecord) -> dict[str, Any]:
    """Return a job's record as a line of ``results/``."""
    line: dict[str, Any] = {
        "job": f"{record.batch}/{record.index}",
        "index": record.index,
        "state": record.state.word,
        "attempts": record.attempts,
        "worker": record.worker,
    }
    if record.error is not None:
        line["error"] = record.error
    if record.state in TERMINAL_STATES and record.receipt is not None:
        line |= record.receipt
    return line
