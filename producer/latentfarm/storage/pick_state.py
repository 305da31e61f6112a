"""What was decided about the images of a batch: the lines of its journal, joined.

A line is a change of one moment: ``{"at", "id", "by", "pick", "rating", "images": [[index, epoch], ...]}``. A field
that it lacks stays. Of each image and field the latest line counts, by ``at``, then by ``id``. Lines may be joined in
any order and any number of times, so readers need no order of objects, and a line that is in two of them does no harm.

A decision is about the image of one epoch. If a job has a newer image, only what was decided about that one counts.
With ``"draft": true`` a line is about a job's draft, and holds for the image that is made of it as well: together with
the lines about that image, of which each field has the latest value again.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from latentfarm.errors import InputError
from latentfarm.storage.keys import MAX_OBJECT_BYTES

MIN_RATING, MAX_RATING = 1, 5
#: the word of a filter for images that are neither picked nor rejected
UNDECIDED = "none"


class Pick(StrEnum):
    """Whether an image is kept."""

    PICKED = "picked"
    REJECTED = "rejected"


#: the words of a filter by pick
PICK_WORDS = (*Pick, UNDECIDED)


class Unchanged(Enum):
    """Marks a field that a change leaves as it is; None removes its value."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED
NewPick = Pick | None | Literal[Unchanged.UNCHANGED]
NewRating = int | None | Literal[Unchanged.UNCHANGED]


@dataclass(frozen=True, slots=True)
class PickChange:
    """A change of what was decided about the image, or the draft, that a job had under an epoch."""

    index: int
    epoch: int
    pick: NewPick = UNCHANGED
    rating: NewRating = UNCHANGED
    draft: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about the image of a job: a pick, a rating from 1 to 5, or both."""

    index: int
    epoch: int
    pick: Pick | None
    rating: int | None

    def fields(self) -> dict[str, Any]:
        """Return the fields of a result that are set."""
        found = {"pick": self.pick and self.pick.value, "rating": self.rating}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class PickCounts:
    """The numbers of images that are picked, rejected and rated."""

    picked: int
    rejected: int
    rated: int


class PickLine(BaseModel):
    """A line of the journal: one change of all ``images``, pairs of index and epoch; with ``draft``, all are drafts."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    at: int
    id: str
    by: str = ""
    pick: Pick | None = None
    rating: Annotated[int, Field(ge=MIN_RATING, le=MAX_RATING)] | None = None
    draft: bool = False
    images: list[tuple[int, int]]


#: time, id and author of a change, and the value; those of one field compare with each other
_PickMark = tuple[int, str, str, str]
_RatingMark = tuple[int, str, int, str]
_NO_PICK: _PickMark = (0, "", "", "")
_NO_RATING: _RatingMark = (0, "", 0, "")


class _Image(NamedTuple):
    """The latest changes of one image, or draft. An empty pick and the rating 0 are none."""

    epoch: int
    pick: _PickMark = _NO_PICK
    rating: _RatingMark = _NO_RATING

    def join(self, other: _Image) -> _Image:
        """Return the changes of both, under the own epoch."""
        return _Image(self.epoch, max(self.pick, other.pick), max(self.rating, other.rating))


class PickState:
    """The join of some lines. ``latest_us`` is the time of the latest, 0 without any."""

    def __init__(self) -> None:
        # of each job the newest image, and the newest draft, that anything was decided about
        self._images: dict[int, _Image] = {}
        self._drafts: dict[int, _Image] = {}
        self._jobs = 0
        self._counts: Counter[str | int] = Counter()
        self.latest_us = 0

    def __len__(self) -> int:
        """Return the number of jobs about whose images something was decided, or withdrawn again."""
        return self._jobs

    def __contains__(self, index: int) -> bool:
        """Return whether a job is one of them."""
        return index in self._images or index in self._drafts

    def join(self, line: PickLine) -> None:
        """Take a line into account."""
        stamp, named = (line.at, line.id), line.model_fields_set
        pick = (*stamp, line.pick.value if line.pick else "", line.by) if "pick" in named else _NO_PICK
        rating = (*stamp, line.rating or 0, line.by) if "rating" in named else _NO_RATING
        self.latest_us = max(self.latest_us, line.at)
        images = self._drafts if line.draft else self._images
        for index, epoch in line.images:
            known, new = images.get(index), _Image(epoch, pick, rating)
            if known is not None and known.epoch > epoch:
                continue
            before = self._newest(index)
            images[index] = known.join(new) if known is not None and known.epoch == epoch else new
            self._count(before, self._newest(index))

    def _newest(self, index: int) -> _Image | None:
        """Return what counts of a job's newest image or draft, None if nothing was decided about any."""
        image, draft = self._images.get(index), self._drafts.get(index)
        if image is None or draft is None:
            return image or draft
        return draft if draft.epoch > image.epoch else image.join(draft)

    def _count(self, before: _Image | None, after: _Image | None) -> None:
        for image, step in ((before, -1), (after, 1)):
            if image is not None:
                self._counts[image.pick[2]] += step
                self._counts[image.rating[2]] += step
        self._jobs += before is None

    def lines(self) -> Iterator[PickLine]:
        """Yield the fewest lines whose join this is."""
        groups: dict[tuple[bool, _PickMark, _RatingMark], list[tuple[int, int]]] = {}
        for drafts, images in ((False, self._images), (True, self._drafts)):
            for index, (epoch, pick, rating) in sorted(images.items()):
                together = pick[:2] == rating[:2] and pick[3] == rating[3]
                for marks in [(pick, rating)] if together else [(pick, _NO_RATING), (_NO_PICK, rating)]:
                    if marks != (_NO_PICK, _NO_RATING):
                        groups.setdefault((drafts, *marks), []).append((index, epoch))
        for (drafts, pick, rating), found in groups.items():
            at, unique, _, by = pick if pick != _NO_PICK else rating
            fields: dict[str, Any] = {"at": at, "id": unique, "by": by, "images": found}
            if pick != _NO_PICK:
                fields["pick"] = Pick(pick[2]) if pick[2] else None
            if rating != _NO_RATING:
                fields["rating"] = rating[2] or None
            if drafts:
                fields["draft"] = True
            yield PickLine(**fields)

    def counts(self) -> PickCounts:
        """Return how many images are picked, rejected and rated."""
        rated = sum(self._counts[rating] for rating in range(MIN_RATING, MAX_RATING + 1))
        return PickCounts(self._counts[Pick.PICKED.value], self._counts[Pick.REJECTED.value], rated)

    def decision(self, index: int) -> Decision | None:
        """Return what was decided about the newest image of a job that anything was decided about."""
        return _decision(index, self._newest(index))

    def decision_about(self, index: int, epoch: int, *, draft: bool) -> Decision | None:
        """Return what was decided about the image, or the draft, that a job has, of an epoch."""
        image, made_of = self._images.get(index), self._drafts.get(index)
        found = _Image(epoch)
        if image is not None and not draft and image.epoch == epoch:
            found = found.join(image)
        if made_of is not None and _holds(made_of, epoch, draft=draft):
            found = found.join(made_of)
        return _decision(index, found)

    def outdated(self, index: int, epoch: int | None, *, draft: bool) -> list[PickChange]:
        """Return the changes that withdraw what counts no longer for a job.

        Args:
            index: index of the job.
            epoch: that of the image, or the draft, that it has; None for neither.
            draft: whether it is a draft.
        """
        image, made_of = self._images.get(index), self._drafts.get(index)
        found = []
        if image is not None and _is_set(image) and (draft or image.epoch != epoch):
            found.append(PickChange(index, image.epoch, None, None))
        if made_of is not None and _is_set(made_of) and not (epoch and _holds(made_of, epoch, draft=draft)):
            found.append(PickChange(index, made_of.epoch, None, None, draft=True))
        return found

    def decisions(self) -> list[Decision]:
        """Return all decisions by rising index."""
        jobs = sorted(self._images.keys() | self._drafts.keys())
        return [found for index in jobs if (found := self.decision(index)) is not None]

    def select(self, words: Collection[str], rating: int, start: int = 0) -> list[int]:
        """Return the rising indices from ``start`` of images with a decision that fits.

        Args:
            words: of ``PICK_WORDS`` [default: any].
            rating: at least this one; 0 for any.
            start: the first index.
        """
        found = ((index, self._newest(index)) for index in self._images.keys() | self._drafts.keys() if index >= start)
        return sorted(
            index
            for index, image in found
            if image and image.rating[2] >= rating and (not words or (image.pick[2] or UNDECIDED) in words)
        )


def _is_set(image: _Image) -> bool:
    return bool(image.pick[2] or image.rating[2])


def _holds(made_of: _Image, epoch: int, *, draft: bool) -> bool:
    """Return whether what was decided about a draft counts for the draft, or the image, of an epoch."""
    return made_of.epoch == epoch if draft else made_of.epoch <= epoch


def _decision(index: int, image: _Image | None) -> Decision | None:
    if image is None or not _is_set(image):
        return None
    return Decision(index, image.epoch, Pick(image.pick[2]) if image.pick[2] else None, image.rating[2] or None)


def dump_lines(lines: Iterable[PickLine]) -> bytes:
    """Return lines as an object of the journal."""
    text = "".join(f"{line.model_dump_json(exclude_unset=True)}\n" for line in lines)
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


def parse_lines(body: bytes, key: str) -> Iterator[PickLine]:
    """Yield the lines of an object of the journal. Memory is bounded for any body.

    Raises:
        InputError: it is damaged, or not of latentfarm.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as opened:
            text = opened.read(MAX_OBJECT_BYTES + 1)
        if not 0 < len(text) <= MAX_OBJECT_BYTES:
            raise ValueError
        # one by one: a list of a hundred thousand would keep Python's collector of garbage busy for a second
        for line in text.splitlines():
            yield PickLine.model_validate_json(line)
    except (OSError, EOFError, zlib.error, ValueError):  # pydantic's errors are ValueErrors
        raise InputError(f"{key} is damaged; delete the object to go on without the picks in it") from None
