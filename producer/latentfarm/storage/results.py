"""Receipts and failures on their way from the ledger to ``results/part-*.jsonl.gz``, and back to whoever asks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from typing import Any

from latentfarm.errors import InputError
from latentfarm.job import PART_JOBS, TERMINAL_STATES, JobState
from latentfarm.ledger import JobRecord, Ledger
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import images_prefix, parse_image_key, part_indices, part_of, results_key, traces_prefix
from latentfarm.storage.part_codec import pack, unpack

log = logging.getLogger(__name__)

_UNENDED = frozenset(state.word for state in JobState if state not in TERMINAL_STATES)


def flush_part(ledger: Ledger, bucket: Bucket, batch: str, part: int) -> int:
    """Write a part whose jobs have all ended to the bucket, then forget its receipts; return how many lines it has.

    Anyone may do it, more than once and at the same time as others: what the ledger has forgotten meanwhile is taken
    from the bucket, so every writer writes the same lines.
    """
    record, moment_us = ledger.batch(batch), ledger.now_us()
    lines = list(read_range(ledger, bucket, batch, part_indices(part, record.total)))
    bucket.put(results_key(batch, part), pack(lines), content_type="application/gzip")
    if ledger.had_returns(batch, part):
        _discard(bucket, batch, part, lines, before_us=moment_us)
    ledger.drop_flushed(batch, part, retries=record.retries)
    return len(lines)


def _discard(bucket: Bucket, batch: str, part: int, lines: list[dict[str, Any]], *, before_us: int) -> None:
    """Remove what leases left in the bucket that ended without a commit.

    Of a job that is done, whatever is older than the committed image; of one that ended otherwise, whatever is older
    than ``before_us``, when nobody held it; of one that a retry has begun meanwhile, nothing.
    """
    oldest = {
        line["index"]: line["epoch"] if line["state"] == JobState.DONE.word else before_us
        for line in lines
        if line["state"] not in _UNENDED
    }
    for folder in (images_prefix(batch, part), traces_prefix(batch, part)):
        found = [(key, *named) for key in bucket.keys(folder) if (named := parse_image_key(key))]
        older = [key for key, index, epoch in found if epoch < oldest.get(index, 0)]
        for at in range(0, len(older), PART_JOBS):
            bucket.delete(older[at : at + PART_JOBS])


def discard_leftovers(ledger: Ledger, bucket: Bucket, *, age_s: float) -> int:
    """Look once more through the parts that had returns so long ago; return how many there were.

    A flush finds what lies there by then. What a worker had under way as it died, or was stopped, lands later.
    """
    noted_ms, parts = ledger.leftovers(age_s=age_s)
    for batch, part in parts:
        with suppress(InputError):
            record, moment_us = ledger.batch(batch), ledger.now_us()
            lines = list(read_range(ledger, bucket, batch, part_indices(part, record.total)))
            if any(line["state"] in _UNENDED for line in lines):
                # a job that was retried: its end has the part flushed, and looked through, again
                continue
            _discard(bucket, batch, part, lines, before_us=moment_us)
        ledger.tidied(batch, part, noted_ms=noted_ms)
    return len(parts)


def flush_full_parts(ledger: Ledger, bucket: Bucket, *, batch: str | None = None) -> int:
    """Flush every part that waits, of one batch or of all; return how many could be."""
    parts = [(name, part) for name, part in ledger.full_parts() if batch in {None, name}]
    flushed = 0
    for name, part in parts:
        try:
            flush_part(ledger, bucket, name, part)
            flushed += 1
        except InputError as error:
            # one batch that was tampered with must not keep all others from their results
            log.warning("part %d of %s is not flushed: %s", part, name, error)
    return flushed


def read_part(bucket: Bucket, batch: str, part: int) -> list[dict[str, Any]]:
    """Return the result lines of a part, none where it was not flushed yet.

    Raises:
        InputError: what lies there is no part of ours.
    """
    try:
        key = results_key(batch, part)
        return unpack(bucket.get(key), name=key)
    except MissingObjectError:
        return []


def read_results(ledger: Ledger, bucket: Bucket, batch: str, total: int) -> Iterator[dict[str, Any]]:
    """Yield a result line for every job of the batch, in order, from wherever it is now."""
    for part in range(-(-total // PART_JOBS)):
        yield from read_range(ledger, bucket, batch, part_indices(part, total))


def read_range(ledger: Ledger, bucket: Bucket, batch: str, indices: range) -> Iterator[dict[str, Any]]:
    """Yield the result lines of some jobs of one part."""
    records = ledger.jobs(batch, indices)
    stored: dict[int, dict[str, Any]] = {}
    # a receipt leaves the ledger only after its part lies in the bucket: asking in this order misses none
    if any(_lies_elsewhere(record) for record in records):
        stored = {line["index"]: line for line in read_part(bucket, batch, indices.start // PART_JOBS)}
    for record in records:
        line = result_line(record)
        kept = stored.get(record.index)
        yield {**line, **kept} if kept is not None and _lies_elsewhere(record) else line


def read_indices(ledger: Ledger, bucket: Bucket, batch: str, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield the result lines of jobs given by their indices, which rise; it costs at most one object a part."""
    for _, group in groupby(indices, key=part_of):
        wanted = list(group)
        span = range(wanted[0], wanted[-1] + 1)
        lines = {line["index"]: line for line in read_range(ledger, bucket, batch, span)}
        yield from (lines[index] for index in wanted)


def _lies_elsewhere(record: JobRecord) -> bool:
    """Return whether what is to be known of an ended job has left the ledger."""
    done = record.state is JobState.DONE and record.receipt is None
    return done or (record.state is JobState.FAILED and record.error is None)


def result_line(record: JobRecord) -> dict[str, Any]:
    """Return what is known of a job, as it stands in ``results/``."""
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
