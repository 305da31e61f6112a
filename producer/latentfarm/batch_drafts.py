"""Drafts of a batch: which of them are selected, what it costs to finish them, and finishing or discarding them."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from latentfarm.errors import InputError
from latentfarm.storage.pick_state import Pick

#: bits of a perceptual hash, two of which differ in at most so many
HASH_BITS = 64


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

    def __post_init__(self) -> None:
        if self.top < 0 or (self.top > 1 and self.top != int(self.top)):
            raise InputError(f"top {self.top:g}: write a share below 1 such as 0.1, or a number of drafts such as 20")
        if self.distinct is not None and not 0 <= self.distinct <= HASH_BITS:
            raise InputError(f"distinct {self.distinct}: write the bits in which two hashes differ, 0 to {HASH_BITS}")
        if self.by and not self.top and self.distinct is None:
            raise InputError(f"by {self.by!r} orders drafts, of which none are left out; add top or distinct")


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
