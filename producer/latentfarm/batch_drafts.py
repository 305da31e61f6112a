"""Drafts of a batch: which of them are selected, what it costs to finish them, and finishing or discarding them.

A selection of the best is about all drafts that the batch ever had: those that were finished before count towards the
number, as ``storage.draft_results`` has their lines. So a selection that is repeated changes nothing the second time,
and one that was interrupted is continued.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from latentfarm.batch_jobs import joined_result
from latentfarm.connection import Connection
from latentfarm.draft_ranking import HASH_BITS, RankedDraft, count_best, numbers_in, rank, ranked_draft
from latentfarm.errors import ConflictError, InputError, NotFoundError
from latentfarm.job_state import JobState
from latentfarm.ledger import Throughput
from latentfarm.parallel import ordered_parallel_map
from latentfarm.storage import results
from latentfarm.storage.draft_results import DraftResults, Lines
from latentfarm.storage.keys import checkpoint_key, part_indices, part_of
from latentfarm.storage.pick_state import Pick
from latentfarm.storage.picks import PickJournal

if TYPE_CHECKING:
    from latentfarm.storage.manifest import ManifestReader


#: parts of results that are read at the same time
_THREADS = 16
_RUNNING = frozenset({JobState.PENDING, JobState.LEASED})


@dataclass(frozen=True, slots=True)
class DraftSelection:
    """Which drafts of a batch are meant: those that fit every criterion that is set. Without any, all drafts.

    Attributes:
        indices: only these jobs; each of them must be a draft, or have been finished or discarded before.
        pick: only drafts that are picked, or only those that are rejected.
        top: only the best: below 1 a share of the drafts that fit the other criteria, from 1 on a number; 0: all.
        by: the number in the result lines that makes a draft better, by its dotted path such as ``scores.clip``,
            ``columns.x`` or ``rating``; a scorer's name is short for its score. Empty: the order of the batch.
        distinct: leave out drafts whose perceptual hash differs from that of a better one in at most so many bits.
    """

    indices: tuple[int, ...] | None = None
    pick: Pick | None = None
    top: float = 0
    by: str = ""
    distinct: int | None = None

    @property
    def is_ranked(self) -> bool:
        """Whether drafts are left out because others are better."""
        return bool(self.top) or self.distinct is not None

    def __post_init__(self) -> None:
        if self.top < 0 or (self.top > 1 and self.top != int(self.top)):
            raise InputError(f"top {self.top:g}: write a share below 1 such as 0.1, or a number of drafts such as 20")
        if self.distinct is not None and not 0 <= self.distinct <= HASH_BITS:
            raise InputError(f"distinct {self.distinct}: write the bits in which two hashes differ, 0 to {HASH_BITS}")
        if self.top and not self.by:
            raise InputError(
                f"top {self.top:g}: write by which number, such as the scorer sharpness, a draft is better"
            )
        if self.by and not self.is_ranked:
            raise InputError(f"by {self.by!r} orders drafts, of which none is left out; write top or distinct as well")


class DraftWork(BaseModel):
    """Work on drafts: evaluations of the model, and the GPU hours that they take.

    ``gpu_hours`` comes from measurements of the model's workers; None without any.
    """

    model_config = ConfigDict(frozen=True)

    evaluations: int
    gpu_hours: float | None


class DraftPrice(BaseModel):
    """What drafts cost, counted from their receipts.

    ``made`` is the work on all drafts of the batch so far, ``finish`` that which is left for the selected ones, and
    ``saved`` that which is left for the others and is never made if they are discarded.
    """

    model_config = ConfigDict(frozen=True)

    made: DraftWork
    finish: DraftWork
    saved: DraftWork


class DraftReport(BaseModel):
    """What a selection of drafts is, costs, or became.

    ``drafts`` counts the drafts of the batch before the call, ``selected`` those of them that are selected; ``indices``
    are the latter, rising. ``before`` counts jobs that are selected by name and were finished or discarded before.
    ``changed`` drafts were finished or discarded by this call. ``price`` is None unless it was queried.
    """

    model_config = ConfigDict(frozen=True)

    batch: str
    drafts: int
    selected: int
    indices: tuple[int, ...]
    before: int
    changed: int = 0
    price: DraftPrice | None = None


class _End(Enum):
    """What becomes of drafts. The value has the states that jobs of this end have, now or later."""

    FINISHED = frozenset({JobState.PENDING, JobState.LEASED, JobState.DONE, JobState.FAILED})
    DISCARDED = frozenset({JobState.CANCELLED})


@dataclass(frozen=True)
class _Choice:
    """The drafts of a batch that are selected, best first or by index, and how many have that end already."""

    drafts: int
    ranked: list[int]
    before: int

    @property
    def indices(self) -> list[int]:
        return sorted(self.ranked)


@dataclass(slots=True)
class _Sum:
    evaluations: int = 0
    cost: float = 0

    def add(self, evaluations: int, cost: float) -> None:
        self.evaluations += evaluations
        self.cost += cost

    def work(self, throughput: Throughput | None) -> DraftWork:
        hours = None if throughput is None else throughput.gpu_hours(self.cost)
        return DraftWork(evaluations=self.evaluations, gpu_hours=hours)


class BatchDrafts:
    """The drafts of one batch; ``Batch`` has what its methods raise."""

    def __init__(self, connection: Connection, journal: PickJournal, manifest: ManifestReader) -> None:
        self._connection, self._ledger, self._bucket = connection, connection.ledger, connection.bucket
        self._batch = journal.batch
        self._journal = journal
        self._manifest = manifest
        self._kept = DraftResults(connection.bucket, journal.batch)

    def lines(self, selection: DraftSelection) -> Iterator[dict[str, Any]]:
        """Yield the joined result lines of the selected drafts, the best first if others are left out for them."""
        choice = self._choose(selection, _End.FINISHED)
        chosen = set(choice.ranked)
        self._journal.refresh()
        found = (line for line, is_draft in self._lines(()) if is_draft and line["index"] in chosen)
        if not selection.is_ranked:
            yield from found
            return
        lines = {line["index"]: line for line in found}
        # one that was finished meanwhile is no draft any more
        yield from (lines[index] for index in choice.ranked if index in lines)

    def price(self, selection: DraftSelection) -> DraftReport:
        """Return what the selection costs. Nothing is changed."""
        choice = self._choose(selection, _End.FINISHED)
        chosen, made, finish, saved = set(choice.ranked), _Sum(), _Sum(), _Sum()
        for line, is_draft in self._lines(frozenset(JobState)):
            evaluations, total = line["draft"]["evaluations"], line["draft"]["of"]
            cost, left = self._cost_of(line) / total, total - evaluations
            made.add(evaluations, cost * evaluations)
            if is_draft:
                (finish if line["index"] in chosen else saved).add(left, cost * left)
        throughput = self._ledger.throughput(self._ledger.batch(self._batch).model)
        works = {"made": made, "finish": finish, "saved": saved}
        price = DraftPrice(**{name: each.work(throughput) for name, each in works.items()})
        return self._report(choice, price=price)

    def finish(self, selection: DraftSelection) -> DraftReport:
        """Let the selected drafts be rendered to their end, and wake workers."""
        choice, changed = self._choose(selection, _End.FINISHED), 0
        for lines in self._keep(choice.indices):
            changed += self._ledger.finish(self._batch, list(lines))
        if changed:
            self._connection.ring(self._ledger.batch(self._batch).model)
        return self._report(choice, changed=changed)

    def discard(self, selection: DraftSelection, *, flush: bool) -> DraftReport:
        """Cancel the jobs of the selected drafts and delete their objects; store the results if ``flush``."""
        choice, changed = self._choose(selection, _End.DISCARDED), 0
        for lines in self._keep(choice.indices):
            discarded = self._ledger.discard(self._batch, list(lines))
            checkpoints = [checkpoint_key(self._batch, index, epoch) for index, epoch in discarded]
            self._bucket.delete([*checkpoints, *(lines[index]["key"] for index, _ in discarded)])
            changed += len(discarded)
        if changed and flush:
            results.flush_batch(self._ledger, self._bucket, self._batch)
        return self._report(choice, changed=changed)

    def _report(self, choice: _Choice, *, changed: int = 0, price: DraftPrice | None = None) -> DraftReport:
        return DraftReport(
            batch=self._batch,
            drafts=choice.drafts,
            selected=len(choice.ranked),
            indices=tuple(choice.indices),
            before=choice.before,
            changed=changed,
            price=price,
        )

    # -- which drafts ------------------------------------------------------------------------------------------

    def _choose(self, selection: DraftSelection, end: _End) -> _Choice:
        drafts = list(self._ledger.indices(self._batch, JobState.DRAFTED))
        named = None if selection.indices is None else frozenset(selection.indices)
        before = 0 if named is None else self._count_ended(named - set(drafts), end)
        if named is None and selection.pick is None and not selection.is_ranked:
            return _Choice(len(drafts), drafts, 0)
        if selection.pick is None and not selection.is_ranked:
            return _Choice(len(drafts), [index for index in drafts if index in (named or ())], before)
        self._journal.refresh()
        found: dict[RankedDraft, bool] = {}
        paths: list[str] = []
        with_hash = False
        # the manifest has the columns, and takes longer to read than the rest of a line
        for line, is_draft in self._lines(end.value, whole=selection.by.startswith("columns.")):
            if named is not None and line["index"] not in named:
                continue
            if selection.pick is not None and line.get("pick") != selection.pick:
                continue
            draft = ranked_draft(line, selection.by)
            found[draft] = is_draft
            with_hash |= draft.phash is not None
            paths = paths or numbers_in(line)
        if found and selection.by and all(draft.number is None for draft in found):
            raise InputError(f"no draft of {self._batch} has the number {selection.by!r}; write {' or '.join(paths)}")
        if found and selection.distinct is not None and not with_hash:
            raise InputError(f"no draft of {self._batch} has a perceptual hash, scores.phash; leave out distinct")
        ranked = list(rank(found, distinct=selection.distinct))[: count_best(selection.top, len(found))]
        chosen = [draft.index for draft in ranked if found[draft]]
        return _Choice(len(drafts), chosen, len(ranked) - len(chosen))

    def _lines(self, ended: Collection[JobState], *, whole: bool = True) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield the result lines of drafts in order, and whether each is one now.

        The others are of drafts that were finished or discarded and whose jobs are in one of the states ``ended``.
        Unless ``whole``, lines are not joined with the manifest.
        """
        drafts = self._ledger.indices(self._batch, JobState.DRAFTED)
        by_part = {part: list(group) for part, group in groupby(drafts, key=part_of)}
        kept, total = self._kept.parts(), self._ledger.batch(self._batch).total

        def read(part: int) -> list[tuple[dict[str, Any], bool]]:
            now = self._drafts_now(by_part.get(part, ()))
            before = self._kept.read(part, kept[part]) if part in kept else {}
            span = part_indices(part, total)
            states = self._ledger.states(self._batch, span.start, span.stop) if before else []
            past = {index: line for index, line in before.items() if states[index - span.start] in ended}
            lines = {**past, **now}
            join = self._joined if whole else self._decided
            return [(join(lines[index]), index in now) for index in sorted(lines)]

        parts = sorted(by_part.keys() | kept.keys())
        with closing(ordered_parallel_map(parts, read, threads=_THREADS, group=1)) as found:
            for _, lines in found:
                yield from lines

    def _drafts_now(self, indices: Sequence[int]) -> Lines:
        """Return the result lines of those jobs of one part that are drafts."""
        found = results.read_indices(self._ledger, self._bucket, self._batch, indices)
        return {line["index"]: line for line in found if line["state"] == JobState.DRAFTED.word}

    def _joined(self, line: dict[str, Any]) -> dict[str, Any]:
        return joined_result(line, self._manifest.entry(self._batch, line["index"]), self._journal.fields_of(line))

    def _decided(self, line: dict[str, Any]) -> dict[str, Any]:
        return {**line, **self._journal.fields_of(line)}

    def _keep(self, indices: Sequence[int]) -> Iterator[Lines]:
        """Store the result lines of drafts and yield them, a part at a time."""
        kept = self._kept.parts() if indices else {}
        for part, group in groupby(indices, key=part_of):
            lines = self._drafts_now(list(group))
            self._kept.write(part, kept.get(part, ()), lines)
            yield lines

    def _count_ended(self, named: Collection[int], end: _End) -> int:
        """Return the number of named jobs that are no drafts; check that each of them has this end already."""
        total, kept = self._ledger.batch(self._batch).total, self._kept.parts() if named else {}
        for part, group in groupby(sorted(named), key=part_of):
            indices = list(group)
            for index in (indices[0], indices[-1]):
                if not 0 <= index < total:
                    raise NotFoundError(
                        f"job {self._batch}/{index} does not exist; the batch has the jobs 0 to {total - 1}"
                    )
            states = self._ledger.states(self._batch, indices[0], indices[-1] + 1)
            lines = self._kept.read(part, kept[part]) if part in kept else {}
            for index in indices:
                state = states[index - indices[0]]
                if problem := _problem(state, end, was_draft=index in lines):
                    raise ConflictError(f"job {self._batch}/{index} is {state.word}{problem}")
        return len(named)

    def _cost_of(self, line: dict[str, Any]) -> float:
        """Return the cost of the whole job, as workers count it."""
        size = line.get("hires") or line["request"]
        job = self._manifest.job(self._batch, line["index"])
        return job.compute_cost(size["width"] * size["height"])


def _problem(state: JobState, end: _End, *, was_draft: bool) -> str:
    """Return why a job that is no draft cannot have an end, and the cure; empty if it has that end."""
    if state is JobState.DRAFTED or (end is _End.DISCARDED and state is JobState.CANCELLED):
        return ""
    if end is _End.FINISHED and (state is JobState.DONE or (was_draft and state in _RUNNING)):
        return ""
    if state is JobState.FAILED:
        return "; run `latentfarm retry`, or leave it out"
    if state is JobState.CANCELLED:
        return ": its draft was discarded; submit its row again, or leave it out"
    if was_draft and state in _RUNNING:
        return ": its draft is being finished; leave it out"
    return ", no draft; leave it out" if state is JobState.DONE else ", no draft yet; wait for it, or leave it out"
