"""Decisions about the images of a batch, which its users make: picked or rejected, and a rating."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from latentfarm.errors import ConflictError, InputError, NotFoundError
from latentfarm.job_state import JobState
from latentfarm.ledger import Ledger
from latentfarm.storage import results
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.part_reads import read_by_part
from latentfarm.storage.pick_state import (
    MAX_RATING,
    MIN_RATING,
    PICK_WORDS,
    UNCHANGED,
    UNDECIDED,
    NewPick,
    NewRating,
    Pick,
    PickChange,
    PickCounts,
)
from latentfarm.storage.picks import MAX_DECIDED, PickJournal


@dataclass(frozen=True, slots=True)
class ImagePick:
    """A decision to make about the image of a job, or about its draft, for the image that is made of it as well.

    A field that is not given stays; None removes its value. With an ``epoch``, it is about the image of that epoch.
    """

    index: int
    pick: NewPick = UNCHANGED
    rating: NewRating = UNCHANGED
    epoch: int | None = None


def decide(
    ledger: Ledger, bucket: Bucket, journal: PickJournal, wanted: Sequence[ImagePick], *, by: str = ""
) -> PickCounts:
    """Make decisions about the images that jobs have now, all or none; return the counts of the batch.

    Args:
        ledger: the ledger.
        bucket: the bucket.
        journal: the picks of the batch.
        wanted: the decisions, at most one a job.
        by: the name of the API key that decides.

    Raises:
        InputError: a rating is out of range, a job is named twice, or there are too many.
        NotFoundError: there is no such batch or job.
        ConflictError: a job has no image, or another one than that of the epoch.
    """
    batch, chosen = journal.batch, {each.index: each for each in wanted}
    _check(ledger.batch(batch).total, batch, wanted)
    lines = read_by_part(sorted(chosen), partial(results.read_indices, ledger, bucket, batch))
    journal.write(ledger, [_change_of(chosen[line["index"]], line) for line in lines], by=by)
    return journal.counts()


def _check(total: int, batch: str, wanted: Sequence[ImagePick]) -> None:
    if len(wanted) > MAX_DECIDED:
        raise InputError(f"{len(wanted):,} images are too many at once; write at most {MAX_DECIDED:,}")
    seen: set[int] = set()
    for each in wanted:
        if not 0 <= each.index < total:
            raise NotFoundError(f"job {batch}/{each.index} does not exist; the batch has the jobs 0 to {total - 1}")
        if each.index in seen:
            raise InputError(f"job {batch}/{each.index} is named twice; write one decision about an image")
        if isinstance(each.rating, int) and not MIN_RATING <= each.rating <= MAX_RATING:
            raise InputError(f"job {batch}/{each.index}: rating {each.rating}; write {MIN_RATING} to {MAX_RATING}")
        seen.add(each.index)


def _change_of(wanted: ImagePick, line: dict[str, Any]) -> PickChange:
    draft = line["state"] == JobState.DRAFTED.word
    if not draft and line["state"] != JobState.DONE.word:
        raise ConflictError(
            f"job {line['job']} is {line['state']}; only the image of a done job, or a draft, can be picked or rated"
        )
    epoch: int = line["epoch"]
    if wanted.epoch not in {None, epoch}:
        raise ConflictError(f"job {line['job']} has another image now, of epoch {epoch}; decide about that one")
    return PickChange(wanted.index, epoch, wanted.pick, wanted.rating, draft)


def check_pick(word: str) -> Pick:
    """Return the pick of this name.

    Raises:
        InputError: there is none.
    """
    try:
        return Pick(word)
    except ValueError:
        raise InputError(f"pick {word!r}: write one of {', '.join(Pick)}, or None") from None


def check_pick_words(words: Iterable[str]) -> frozenset[str]:
    """Return the words of a filter by pick.

    Raises:
        InputError: one is unknown.
    """
    found = frozenset(words)
    for word in found:
        if word not in PICK_WORDS:
            raise InputError(f"pick {word!r}: write one of {', '.join(PICK_WORDS)}")
    return found


def select_indices(
    journal: PickJournal, words: Collection[str], indices: Iterable[int] | None, total: int
) -> Iterable[int]:
    """Return the rising indices of jobs whose image may fit a filter by pick, without reading their results.

    Args:
        journal: the picks.
        words: of ``PICK_WORDS`` [default: any].
        indices: from which to select [default: all].
        total: the number of the batch's jobs.
    """
    if not words:
        return range(total) if indices is None else indices
    if UNDECIDED in words:
        left_out = set(journal.select(set(PICK_WORDS) - set(words))) if len(set(words)) < len(PICK_WORDS) else set()
        return (index for index in (range(total) if indices is None else indices) if index not in left_out)
    chosen = journal.select(words)
    if indices is None:
        return [index for index in chosen if index < total]
    fits = set(chosen)
    return (index for index in indices if index in fits)


def has_pick(result: dict[str, Any], words: Collection[str]) -> bool:
    """Return whether a result fits a filter by pick. Only what was decided about the image that it has counts."""
    return not words or (result.get("pick") or UNDECIDED) in words
