"""What was decided about the images of a batch: the lines of its journal, joined.

A line is a change of one moment: ``{"at", "id", "by", "pick", "rating", "images": [[index, epoch], ...]}``. A field
that it lacks stays. Of each image and field the latest line counts, by ``at``, then by ``id``. Lines may be joined in
any order and any number of times, so readers need no order of objects, and a line that is in two of them does no harm.

A decision is about the image of one epoch. If a job has a newer image, only what was decided about that one counts.
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
    """A change of what was decided about the image that a job had under an epoch."""

    index: int
    epoch: int
    pick: NewPick = UNCHANGED
    rating: NewRating = UNCHANGED


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
    """A line of the journal: one change of all ``images``, which are pairs of index and epoch."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    at: int
    id: str
    by: str = ""
    pick: Pick | None = None
    rating: Annotated[int, Field(ge=MIN_RATING, le=MAX_RATING)] | None = None
    images: list[tuple[int, int]]


#: time, id and author of a change, and the value; those of one field compare with each other
_PickMark = tuple[int, str, str, str]
_RatingMark = tuple[int, str, int, str]
_NO_PICK: _PickMark = (0, "", "", "")
_NO_RATING: _RatingMark = (0, "", 0, "")


class _Image(NamedTuple):
    """The latest changes of one image. An empty pick and the rating 0 are none."""

    epoch: int
    pick: _PickMark = _NO_PICK
    rating: _RatingMark = _NO_RATING


class PickState:
    """The join of some lines. ``latest_us`` is the time of the latest, 0 without any."""

    def __init__(self) -> None:
        self._images: dict[int, _Image] = {}
        self._counts: Counter[str | int] = Counter()
        self.latest_us = 0

    def __len__(self) -> int:
        """Return the number of jobs about whose images something was decided, or withdrawn again."""
        return len(self._images)

    def __contains__(self, index: int) -> bool:
        """Return whether a job is one of them."""
        return index in self._images

    def join(self, line: PickLine) -> None:
        """Take a line into account."""
        stamp, named = (line.at, line.id), line.model_fields_set
        pick = (*stamp, line.pick.value if line.pick else "", line.by) if "pick" in named else _NO_PICK
        rating = (*stamp, line.rating or 0, line.by) if "rating" in named else _NO_RATING
        self.latest_us = max(self.latest_us, line.at)
        for index, epoch in line.images:
            before = self._images.get(index)
            if before is None or before.epoch < epoch:
                after = _Image(epoch, pick, rating)
            elif before.epoch == epoch:
                after = _Image(epoch, max(before.pick, pick), max(before.rating, rating))
            else:
                continue
            self._images[index] = after
            self._count(before, after)

    def _count(self, before: _Image | None, after: _Image) -> None:
        if before is not None:
            self._counts[before.pick[2]] -= 1
            self._counts[before.rating[2]] -= 1
        self._counts[after.pick[2]] += 1
        self._counts[after.rating[2]] += 1

    def lines(self) -> Iterator[PickLine]:
        """Yield the fewest lines whose join this is."""
        groups: dict[tuple[_PickMark, _RatingMark], list[tuple[int, int]]] = {}
        for index, (epoch, pick, rating) in sorted(self._images.items()):
            together = pick[:2] == rating[:2] and pick[3] == rating[3]
            for marks in [(pick, rating)] if together else [(pick, _NO_RATING), (_NO_PICK, rating)]:
                if marks != (_NO_PICK, _NO_RATING):
                    groups.setdefault(marks, []).append((index, epoch))
        for (pick, rating), images in groups.items():
            at, unique, _, by = pick if pick != _NO_PICK else rating
            fields: dict[str, Any] = {"at": at, "id": unique, "by": by, "images": images}
            if pick != _NO_PICK:
                fields["pick"] = Pick(pick[2]) if pick[2] else None
            if rating != _NO_RATING:
                fields["rating"] = rating[2] or None
            yield PickLine(**fields)

    def counts(self) -> PickCounts:
        """Return how many images are picked, rejected and rated."""
        rated = sum(self._counts[rating] for rating in range(MIN_RATING, MAX_RATING + 1))
        return PickCounts(self._counts[Pick.PICKED.value], self._counts[Pick.REJECTED.value], rated)

    def decision(self, index: int) -> Decision | None:
        """Return what was decided about the newest image of a job that anything was decided about."""
        found = self._images.get(index)
        if found is None or not (found.pick[2] or found.rating[2]):
            return None
        return Decision(index, found.epoch, Pick(found.pick[2]) if found.pick[2] else None, found.rating[2] or None)

    def decisions(self) -> list[Decision]:
        """Return all decisions by rising index."""
        return [found for index in sorted(self._images) if (found := self.decision(index)) is not None]

    def select(self, words: Collection[str], rating: int, start: int = 0) -> list[int]:
        """Return the rising indices from ``start`` of images with a decision that fits.

        Args:
            words: of ``PICK_WORDS`` [default: any].
            rating: at least this one; 0 for any.
            start: the first index.
        """
        return sorted(
            index
            for index, found in self._images.items()
            if index >= start and found.rating[2] >= rating and (not words or (found.pick[2] or UNDECIDED) in words)
        )


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
