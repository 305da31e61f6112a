"""The order of drafts: by any number of a result line, best first, and without near duplicates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.draft_ranking import RankedDraft, count_best, number_of, rank, ranked_draft

pytestmark = pytest.mark.unit

RESULT: dict[str, Any] = {
    "index": 7,
    "rating": 4,
    "scores": {"sharpness": 0.5, "clip": None, "phash": "ff00000000000001", "a.b": 3},
    "columns": {"aesthetic": "6.25", "x.y": 2, "name": "cat", "flag": True, "huge": 10**400, "no": "nan"},
    "timings": {"encode": 0.25},
    "error": None,
}
HASHES = st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("by", "number"),
    [
        *(("scores.sharpness", 0.5), ("sharpness", 0.5), ("rating", 4), ("columns.aesthetic", 6.25)),
        *(("columns.x.y", 2), ("scores.a.b", 3), ("timings.encode", 0.25), ("index", 7)),
        *(("clip", None), ("columns.name", None), ("columns.flag", None), ("columns.huge", None)),
        *(("columns.no", None), ("unknown", None), ("columns", None), ("rating.x", None), ("error.x", None)),
    ],
)
def test_a_number_is_found_by_its_path_and_a_score_by_its_name(by: str, number: float | None) -> None:
    assert number_of(RESULT, by) == number


def test_a_draft_has_its_number_and_hash_or_none() -> None:
    assert ranked_draft(RESULT, "rating") == RankedDraft(7, 4, 0xFF00000000000001)
    for phash in (None, "", "cat", "-1", "1" + 16 * "0", 5):
        assert ranked_draft({"index": 1, "scores": {"phash": phash}}, "") == RankedDraft(1, None, None)
    assert ranked_draft({"index": 1, "scores": None}, "sharpness") == RankedDraft(1, None, None)


@given(
    st.lists(st.tuples(st.none() | st.integers(0, 3), st.none() | HASHES), max_size=12),
    st.none() | st.integers(0, 64),
)
def test_a_draft_is_left_out_exactly_if_a_better_one_that_is_not_is_near(
    found: list[tuple[int | None, int | None]], distinct: int | None
) -> None:
    drafts = [RankedDraft(index, number, phash) for index, (number, phash) in enumerate(found)]
    kept: list[RankedDraft] = []
    for draft in sorted(drafts, key=lambda each: (each.number is None, -(each.number or 0), each.index)):
        near = (
            distinct is not None
            and draft.phash is not None
            and other.phash is not None
            and (draft.phash ^ other.phash).bit_count() <= distinct
            for other in kept
        )
        if not any(near):
            kept.append(draft)
    assert list(rank(reversed(drafts), distinct=distinct)) == kept


@pytest.mark.parametrize("bits", [0, 3, 7, 11])
def test_near_hashes_are_found_among_many(bits: int) -> None:
    chance = np.random.default_rng(bits)
    # enough of them that they are looked up instead of compared
    hashes = [int.from_bytes(chance.bytes(8)) for _ in range(4_000)]
    near = []
    for known in hashes[::4]:
        flips = chance.choice(64, bits, replace=False)
        near.append(known ^ sum(1 << int(bit) for bit in flips))
    far = [known ^ ((1 << bits + 1) - 1) for known in hashes[:50]]
    drafts = [RankedDraft(index, None, phash) for index, phash in enumerate([*hashes, *near, *far])]
    kept = {draft.index for draft in rank(drafts, distinct=bits)}
    # random hashes differ in more bits than that
    assert kept.issuperset(range(4_000))
    assert kept.isdisjoint(range(4_000, 5_000))
    assert kept.issuperset(range(5_000, 5_050))


@pytest.mark.parametrize(
    ("top", "drafts", "best"),
    [(0, 10, 10), (3, 10, 3), (30, 10, 10), (0.1, 10, 1), (0.01, 10, 1), (0.25, 10, 2), (0.5, 0, 0), (5, 0, 0)],
)
def test_the_best_are_a_share_or_a_number(top: float, drafts: int, best: int) -> None:
    assert count_best(top, drafts) == best
