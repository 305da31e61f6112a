"""The output and error files of batches: joins of their results, made while they are read, and stored nowhere."""

from __future__ import annotations

import re
from collections.abc import Generator

from latentfarm.batch import Batch
from latentfarm.farm import Farm
from latentfarm.fetch.openai_results import openai_lines, requested_entry
from latentfarm.job_state import JobState
from latentfarm.server.openai.batch_state import errors_id, find_batch, output_id
from latentfarm.server.openai.ids import is_batch_id, stem_of
from latentfarm.server.openai.models import OUTPUT_PURPOSE, FileAnswer
from latentfarm.storage.parallel_get import parallel_reader

#: of a block that is sent at once
_BLOCK_BYTES = 65_536
_OUTPUT = re.compile(r"file-(?P<stem>.+)-(?P<kind>output|errors)")
_STATES_OF = {
    "output": frozenset({JobState.DONE}),
    "errors": frozenset({JobState.FAILED, JobState.CANCELLED}),
}


def output_ids(batch: str) -> tuple[str, str]:
    """Return the ids that the files of a batch have, if they exist."""
    stem = stem_of(batch)
    return errors_id(stem), output_id(stem)


def parse_output_id(file: str) -> tuple[str, frozenset[JobState]] | None:
    """Return the batch of an output or error file, and the states of the jobs in it; None for any other id."""
    found = _OUTPUT.fullmatch(file)
    batch = f"batch_{found['stem']}" if found else ""
    return (batch, _STATES_OF[found["kind"]]) if found and is_batch_id(batch) else None


def find_output(farm: Farm, file: str, now: int) -> FileAnswer | None:
    """Return the record of an output or error file, None if there is none.

    That is so while its batch runs, if the batch has no such lines, and if the file has expired at the time ``now``.
    """
    parsed = parse_output_id(file)
    found = find_batch(farm, parsed[0]) if parsed else None
    if found is None or file not in {found[1].output_file_id, found[1].error_file_id}:
        return None
    stored, batch = found
    created_at = batch.completed_at or batch.cancelled_at or batch.created_at
    expires_at = created_at + stored.output_expires_s if stored.output_expires_s else None
    if expires_at is not None and expires_at <= now:
        return None
    return FileAnswer(
        id=file,
        bytes=0,
        created_at=created_at,
        filename=f"{batch.id}_{file.rpartition('-')[2]}.jsonl",
        purpose=OUTPUT_PURPOSE,
        expires_at=expires_at,
    )


def output_blocks(farm: Farm, file: str, *, expires_s: int) -> Generator[bytes, None, None]:
    """Yield the lines of an output or error file in blocks of about 64 KiB.

    Args:
        farm: the farm.
        file: an id that ``parse_output_id`` knows.
        expires_s: seconds that its URLs are valid.
    """
    parsed = parse_output_id(file)
    assert parsed is not None  # noqa: S101 (the caller has found the file)
    batch, states = parsed
    record = farm.ledger.batch(batch)
    results = Batch(farm.connection, batch).results(farm.ledger.find_states(batch, states, 0, record.total))
    words = {state.word for state in states}
    block = bytearray()
    with parallel_reader(farm.bucket) as read:
        entry = requested_entry(farm.bucket, read, expires_s=expires_s)
        for piece in openai_lines(results, entry, created=record.last_ms // 1000, states=words):
            block += piece
            if len(block) >= _BLOCK_BYTES:
                yield bytes(block)
                block.clear()
    yield bytes(block)
