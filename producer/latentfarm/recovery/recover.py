"""Rebuilding the ledger from the bucket: manifests say what was asked, results and images what was made.

For a Redis that was emptied or came back with an old snapshot. A job is done if its image lies in the bucket, decodes
and names the job; nothing that is finished is rendered again. Whoever held a lease has lost it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from latentfarm.errors import InputError
from latentfarm.job_state import JobState
from latentfarm.ledger import BatchRecord, Ledger, Restoration
from latentfarm.parallel import ordered_parallel_map
from latentfarm.recovery.bucket_scan import ManifestExtent, PartScan
from latentfarm.storage.batch_control import BatchControl, read_control
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.manifest import Header, read_header

#: jobs named under each kind of change
_NAMED_JOBS = 5
_BATCHES = "batches/"
#: parts looked at at once; each waits for the store most of the time
_THREADS = 8


class Recovered(BaseModel):
    """What recovery did to one batch, or would do.

    ``was`` is the state in the ledger before, ``missing`` if it was not there. ``changes`` count jobs by
    ``<before> -> <after>``, ``examples`` name a few of each; ``broken`` are objects that look like images and are none.
    """

    model_config = ConfigDict(frozen=True)

    batch: str
    was: str
    state: str
    total: int
    done: int
    failed: int
    changes: dict[str, int]
    examples: dict[str, list[int]]
    broken: list[str]

    @property
    def changed(self) -> bool:
        """Whether the ledger differed from what the bucket proves."""
        return self.was != self.state or bool(self.changes)


def batches_in(bucket: Bucket) -> Iterator[str]:
    """Yield the names of the batches that lie in the bucket."""
    for folder in bucket.folders(_BATCHES):
        yield folder.removeprefix(_BATCHES).removesuffix("/")


def recover_batch(ledger: Ledger, bucket: Bucket, batch: str, *, dry_run: bool = False) -> Recovered:
    """Make the ledger's record of a batch agree with what lies in the bucket.

    Raises:
        InputError: the bucket has no such batch.
    """
    header = read_header(bucket, batch)
    if header is None:
        raise InputError(f"batch {batch!r} has no batch.json in the bucket, so nothing can be rebuilt from it")
    before = ledger.batch(batch) if batch in ledger.batches() else None
    asked, control = ManifestExtent.read(bucket, header), read_control(bucket, batch)
    restoration, tally = Restoration(ledger, batch), _Tally(before)
    if not dry_run:
        restoration.begin(total=asked.total, fields=_fields(header, control))

    def look(part: int) -> PartScan:
        return PartScan.gather(ledger if before else None, bucket, asked, part)

    for part, found in ordered_parallel_map(range(asked.parts), look, group=1, threads=_THREADS):
        tally.add(found)
        if not dry_run:
            restoration.write_part(
                part,
                found.states,
                receipts=found.receipts,
                errors=found.errors,
                flushed=found.flushed,
                truncated=found.truncated,
            )
    state = _state_of(asked, control, tally)
    if not dry_run:
        state = restoration.end(parts_digest=asked.chain, closed=asked.closed, cancelled=control.cancelled)
    return tally.recovered(batch, state, asked.total)


def _fields(header: Header, control: BatchControl) -> dict[str, str | int | float]:
    """Return the fields of the batch's hash that do not follow from its jobs."""
    return {
        "digest": header.digest,
        "model": header.model,
        "priority": header.priority if control.priority is None else control.priority,
        "budget": header.failure_budget,
        "canary": header.canary,
        "webhook": header.webhook,
        "paused": control.paused,
        "paused_by": control.paused_by,
    }


def _state_of(asked: ManifestExtent, control: BatchControl, tally: _Tally) -> str:
    if control.cancelled:
        return "cancelled"
    if not asked.closed:
        return "opening"
    return "complete" if tally.ended.total() == asked.total else "open"


class _Tally:
    """What a recovery changes."""

    def __init__(self, before: BatchRecord | None) -> None:
        self._was = "missing" if before is None else before.state
        self.ended: Counter[JobState] = Counter()
        self._changes: Counter[str] = Counter()
        self._examples: dict[str, list[int]] = {}
        self._broken: list[str] = []

    def add(self, found: PartScan) -> None:
        """Take in the next part."""
        self._broken += found.broken
        for at, (was, now) in enumerate(zip(found.before, found.states, strict=True)):
            if now in {JobState.DONE, JobState.FAILED}:
                self.ended[now] += 1
            # a job that waits is nothing to tell, nor one that was cancelled with its batch
            if was is now or (now is JobState.PENDING and was in {None, JobState.CANCELLED}):
                continue
            change = f"{'missing' if was is None else was.word} -> {now.word}"
            self._changes[change] += 1
            named = self._examples.setdefault(change, [])
            if len(named) < _NAMED_JOBS:
                named.append(found.first + at)

    def recovered(self, batch: str, state: str, total: int) -> Recovered:
        """Return what there is to tell."""
        return Recovered(
            batch=batch,
            was=self._was,
            state=state,
            total=total,
            done=self.ended[JobState.DONE],
            failed=self.ended[JobState.FAILED],
            changes=dict(self._changes),
            examples=self._examples,
            broken=self._broken,
        )
