"""Rebuild the ledger from the bucket: manifests have the jobs, results and images prove which of them are done.

This is for a Redis that lost its data or restored an old snapshot. A job is done if its image is in the bucket, decodes
and has the job's name. Done jobs are not rendered again. A job is drafted if the preview of its draft is like that and
its checkpoint is in the bucket. All leases on the batch are lost, and so is which drafts were to be finished.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing

from pydantic import BaseModel, ConfigDict

from latentfarm.batch_state import BatchState
from latentfarm.errors import NotFoundError
from latentfarm.job_state import COMMITTED_STATES, TERMINAL_STATES, JobState
from latentfarm.ledger import BatchRecord, Ledger, Restoration
from latentfarm.parallel import ordered_parallel_map
from latentfarm.recovery.bucket_scan import BatchScan, ManifestExtent, PartScan
from latentfarm.storage.batch_control import BatchControl, read_control
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import drafts_prefix
from latentfarm.storage.manifest import Header, read_header
from latentfarm.storage.pick_state import PickChange
from latentfarm.storage.picks import PickJournal
from latentfarm.storage.results import list_generations

#: jobs listed for each kind of change
_MAX_EXAMPLES = 5
_BATCHES = "batches/"
#: parts scanned in parallel; each waits for the store most of the time
_THREADS = 8


class RecoveryReport(BaseModel):
    """The changes that a recovery made to a batch's record, or would make.

    Attributes:
        was: the batch's state in the ledger before, ``missing`` without one.
        changes: the number of jobs by ``<before> -> <after>``.
        examples: the first jobs of each change.
        broken: keys of images that do not decode or belong to another job.
    """

    model_config = ConfigDict(frozen=True)

    batch: str
    was: str
    state: BatchState
    total: int
    done: int
    failed: int
    drafted: int
    changes: dict[str, int]
    examples: dict[str, list[int]]
    broken: list[str]

    @property
    def changed(self) -> bool:
        """Whether the ledger differed from what the bucket proves."""
        return self.was != self.state or bool(self.changes)


def list_batches(bucket: Bucket) -> Iterator[str]:
    """Yield the names of the batches in the bucket."""
    for folder in bucket.folders(_BATCHES):
        yield folder.removeprefix(_BATCHES).removesuffix("/")


def recover_batch(ledger: Ledger, bucket: Bucket, batch: str, *, dry_run: bool = False) -> RecoveryReport:
    """Rebuild the ledger's record of a batch from the bucket.

    Raises:
        NotFoundError: the bucket has no such batch.
    """
    header = read_header(bucket, batch)
    if header is None:
        raise NotFoundError(f"batch {batch!r} has no batch.json in the bucket, so nothing can be rebuilt from it")
    before = ledger.batch(batch) if ledger.batch_summaries([batch]) else None
    extent, control = ManifestExtent.read(bucket, header), read_control(bucket, batch)
    restoration, tally = Restoration(ledger, batch), _Tally(before)
    if not dry_run:
        restoration.begin(
            total=extent.total,
            fields=_fields(header, control),
            kind=header.kind,
            owner=header.owner,
            keep_s=header.keep_s,
        )
    # now that no part of the batch is flushed any more
    generations = list_generations(bucket, batch)
    picks = _LostPicks(bucket, batch)

    scan = BatchScan(
        ledger if before else None,
        bucket,
        extent,
        generations,
        cancelled=control.cancelled or (before is not None and before.state is BatchState.CANCELLED),
        with_drafts=any(bucket.keys(drafts_prefix(batch))),
    )
    with closing(ordered_parallel_map(range(extent.parts), scan.part, group=1, threads=_THREADS)) as scans:
        for part, found in scans:
            tally.add(found)
            picks.add(found)
            if not dry_run:
                restoration.write_part(
                    part,
                    found.states,
                    receipts=found.receipts,
                    errors=found.errors,
                    flushed=found.flushed,
                    generation=found.generation,
                    truncated=found.truncated,
                    drafts=found.drafts,
                )
    state = _expected_state(extent, control, tally)
    if not dry_run:
        state = restoration.end(
            parts_digest=extent.parts_digest,
            closed=extent.closed,
            cancelled=control.cancelled,
            highest_generation=max(generations.values(), default=0),
        )
        picks.withdraw(ledger)
    return tally.report(batch, state, extent.total)


def _fields(header: Header, control: BatchControl) -> dict[str, str | int | float]:
    """Return the fields of the batch's record that do not follow from its jobs."""
    return {
        "digest": header.digest,
        "model": header.model,
        "priority": header.priority if control.priority is None else control.priority,
        "budget": header.failure_budget,
        "canary": header.canary,
        "webhook": header.webhook,
        "preempt": int(header.preempt),
        "paused": control.paused,
        "paused_by": control.paused_by,
    }


def _expected_state(extent: ManifestExtent, control: BatchControl, tally: _Tally) -> BatchState:
    if control.cancelled:
        return BatchState.CANCELLED
    if not extent.closed:
        return BatchState.OPENING
    ended = tally.ended.total() - tally.ended[JobState.DRAFTED]
    return BatchState.COMPLETE if ended == extent.total else BatchState.OPEN


class _LostPicks:
    """Collects what was decided about images that are lost, and withdraws it.

    It does not count for the images that follow. But jobs that are neither picked nor rejected are found by the journal
    alone, so it must not have them any more.
    """

    def __init__(self, bucket: Bucket, batch: str) -> None:
        self._journal = PickJournal(bucket, batch)
        self._journal.refresh()
        self._decisions = deque(self._journal.decisions())
        self._lost: list[PickChange] = []

    def add(self, found: PartScan) -> None:
        """Collect those of a part; parts come in order."""
        while self._decisions and self._decisions[0].index < found.first + len(found.states):
            decided = self._decisions.popleft()
            # what the results list is taken for the image that was decided about
            receipt = found.receipts.get(decided.index, {"epoch": found.drafts.get(decided.index, decided.epoch)})
            state = found.states[decided.index - found.first]
            epoch = receipt["epoch"] if state in COMMITTED_STATES else None
            self._lost += self._journal.outdated(decided.index, epoch, draft=state is JobState.DRAFTED)

    def withdraw(self, ledger: Ledger) -> None:
        """Withdraw what was collected."""
        if self._lost:
            self._journal.write(ledger, self._lost, by="recover")


class _Tally:
    """Counts the changes of a recovery."""

    def __init__(self, before: BatchRecord | None) -> None:
        self._was = "missing" if before is None else before.state
        self.ended: Counter[JobState] = Counter()
        self._changes: Counter[str] = Counter()
        self._examples: dict[str, list[int]] = {}
        self._broken: list[str] = []

    def add(self, found: PartScan) -> None:
        """Count the changes of a part."""
        self._broken += found.broken
        for at, (was, now) in enumerate(zip(found.before, found.states, strict=True)):
            if now in TERMINAL_STATES:
                self.ended[now] += 1
            # pending is the default of a new record, and a cancelled job becomes cancelled again with its batch
            if was is now or (now is JobState.PENDING and was in {None, JobState.CANCELLED}):
                continue
            change = f"{'missing' if was is None else was.word} -> {now.word}"
            self._changes[change] += 1
            examples = self._examples.setdefault(change, [])
            if len(examples) < _MAX_EXAMPLES:
                examples.append(found.first + at)

    def report(self, batch: str, state: BatchState, total: int) -> RecoveryReport:
        """Return the report of the batch."""
        return RecoveryReport(
            batch=batch,
            was=self._was,
            state=state,
            total=total,
            done=self.ended[JobState.DONE],
            failed=self.ended[JobState.FAILED],
            drafted=self.ended[JobState.DRAFTED],
            changes=dict(self._changes),
            examples=self._examples,
            broken=self._broken,
        )
