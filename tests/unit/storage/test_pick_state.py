"""Lines of the journal of picks: in any order, any number of times and merged in any way, the latest ones count."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from latentfarm.errors import InputError
from latentfarm.storage.pick_state import (
    MAX_RATING,
    MIN_RATING,
    Decision,
    Pick,
    PickCounts,
    PickLine,
    PickState,
    dump_lines,
    parse_lines,
)

pytestmark = pytest.mark.unit

IMAGES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=4, unique_by=lambda image: image[0]
)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "pick": st.sampled_from([None, *Pick]),
        "rating": st.none() | st.integers(MIN_RATING, MAX_RATING),
    },
).filter(bool)
ABOUT: st.SearchStrategy[dict[str, Any]] = st.sampled_from([{}, {"draft": True}])


@st.composite
def journals(draw: st.DrawFn) -> list[PickLine]:
    stamps = draw(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abcde")), unique=True, max_size=12))
    return [
        PickLine(at=at, id=unique, by="ann", images=draw(IMAGES), **draw(VALUES), **draw(ABOUT))
        for at, unique in stamps
    ]


def joined(lines: Iterable[PickLine]) -> PickState:
    state = PickState()
    for line in lines:
        state.join(line)
    return state


def newest(lines: list[PickLine], index: int, *, draft: bool) -> int | None:
    """Return the newest epoch of a job's images, or drafts, that a line is about."""
    return max(
        (epoch for line in lines for at, epoch in line.images if at == index and line.draft == draft), default=None
    )


def expected(lines: list[PickLine], index: int, about: set[tuple[int | None, bool]]) -> Decision | None:
    """Return what was decided about some epochs of a job's images and drafts: the latest value of each field."""
    values: dict[str, Any] = {"pick": None, "rating": None}
    for line in sorted(lines, key=lambda line: (line.at, line.id)):
        if any(at == index and (epoch, line.draft) in about for at, epoch in line.images):
            values |= line.model_dump(include={"pick", "rating"}, exclude_unset=True)
    epoch = max((epoch for epoch, _ in about if epoch is not None), default=0)
    return Decision(index, epoch, **values) if values["pick"] or values["rating"] else None


def all_expected(lines: list[PickLine]) -> list[Decision]:
    """Return the decisions about the newest images; those about a draft hold for a newer image as well."""
    found = []
    for index in sorted({index for line in lines for index, _ in line.images}):
        image, draft = newest(lines, index, draft=False), newest(lines, index, draft=True)
        about = {(draft, True)} if (draft or 0) > (image or 0) else {(image, False), (draft, True)}
        found.append(expected(lines, index, about))
    return [decision for decision in found if decision]


@given(journals(), st.randoms(use_true_random=False))
def test_of_each_image_and_field_the_latest_line_counts_in_any_order_and_any_number_of_times(
    lines: list[PickLine], random: Any
) -> None:
    shuffled = [*lines, *random.sample(lines, len(lines) // 2)]
    random.shuffle(shuffled)
    state, decided = joined(shuffled), all_expected(lines)
    assert state.decisions() == decided
    assert state.counts() == PickCounts(
        sum(each.pick is Pick.PICKED for each in decided),
        sum(each.pick is Pick.REJECTED for each in decided),
        sum(each.rating is not None for each in decided),
    )
    assert state.latest_us == max((line.at for line in lines), default=0)
    jobs = {index for line in lines for index, _ in line.images}
    assert (len(state), {index for index in range(5) if index in state}) == (len(jobs), jobs)


@given(journals(), st.integers(0, 4), st.integers(1, 4))
def test_what_was_decided_about_a_draft_holds_for_the_image_that_is_made_of_it(
    lines: list[PickLine], index: int, epoch: int
) -> None:
    state = joined(lines)
    image, draft = newest(lines, index, draft=False), newest(lines, index, draft=True)
    drafted = expected(lines, index, {(draft, True)}) if draft == epoch else None
    assert state.decision_about(index, epoch, draft=True) == drafted
    made_of = {(draft, True)} if draft is not None and draft <= epoch else set()
    own = {(image, False)} if image == epoch else set()
    found, decided = state.decision_about(index, epoch, draft=False), expected(lines, index, {*made_of, *own})
    assert (found and found.fields()) == (decided and decided.fields())


@given(journals(), st.integers(0, 4), st.none() | st.integers(1, 4), st.booleans())
def test_without_what_is_outdated_a_job_has_what_counts_for_its_image_and_no_more(
    lines: list[PickLine],
    index: int,
    epoch: int | None,
    draft: bool,  # noqa: FBT001
) -> None:
    state = joined(lines)
    of_image, of_draft = newest(lines, index, draft=False), newest(lines, index, draft=True)
    # no image is older than the draft that it was made of. Where both a lost image and its draft were decided about,
    # the withdrawal hides what was decided about the draft, until the next image is decided about
    whole = of_draft is None or (epoch is not None and of_draft <= epoch and of_image in {None, epoch})
    assume(draft or epoch is None or whole)
    counts = None if epoch is None else state.decision_about(index, epoch, draft=draft)
    for each in state.outdated(index, epoch, draft=draft):
        about: dict[str, Any] = {"draft": True} if each.draft else {}
        state.join(PickLine(at=9, id="z", pick=None, rating=None, images=[(each.index, each.epoch)], **about))
    left = state.decision(index)
    assert (left and left.fields()) == (counts and counts.fields())
    assert state.outdated(index, epoch, draft=draft) == []


@given(journals(), st.lists(st.booleans(), min_size=12, max_size=12))
def test_some_lines_may_be_replaced_by_those_of_their_join(lines: list[PickLine], merged: list[bool]) -> None:
    some = [line for line, chosen in zip(lines, merged, strict=False) if chosen]
    rest = [line for line, chosen in zip(lines, merged, strict=False) if not chosen]
    stored = list(parse_lines(dump_lines(joined(some).lines()), "key")) if some else []
    assert joined([*stored, *rest]).decisions() == joined(lines).decisions()
    # a change of several images and of both fields stays one line
    assert len(stored) <= 2 * sum(len(line.images) for line in some)


def test_a_bulk_change_stays_one_line_after_it_is_merged() -> None:
    line = PickLine(at=1, id="a", pick=Pick.REJECTED, rating=None, images=[(index, 1) for index in range(1_000)])
    assert list(joined([line]).lines()) == [line]


@given(journals(), st.integers(0, MAX_RATING), st.integers(0, 5), st.sets(st.sampled_from([*Pick, "none"])))
def test_images_are_selected_by_pick_and_rating(
    lines: list[PickLine], rating: int, start: int, words: set[str]
) -> None:
    state = joined(lines)
    decided = {each.index: each for each in state.decisions()}
    images = {index for line in lines for index, _ in line.images if index >= start}

    def fits(index: int) -> bool:
        found = decided.get(index)
        pick, stars = (found.pick or "none", found.rating or 0) if found else ("none", 0)
        return stars >= rating and (not words or pick in words)

    assert state.select(words, rating, start) == sorted(filter(fits, images))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no gzip",
        gzip.compress(b"no JSON\n"),
        gzip.compress(b'{"at": 1, "id": "a", "images": [[1, 1]], "rating": 6}\n'),
        gzip.compress(b'{"at": 1, "id": "a", "images": [["1", 1]]}\n'),
        gzip.compress(b'{"at": 1, "id": "a", "images": [[1, 1]], "pick": "kept"}\n'),
        gzip.compress(b'{"at": 1, "id": "a", "images": [[1, 1]]}\n')[:-9],
    ],
    # a compressed text has the time in it, and each process must collect the same names
    ids=["empty", "no-gzip", "no-json", "no-rating", "no-index", "no-pick", "cut"],
)
def test_a_damaged_object_is_named_with_the_cure(body: bytes) -> None:
    with pytest.raises(InputError, match=r"^batches/b/picks/x is damaged; delete the object"):
        list(parse_lines(body, "batches/b/picks/x"))


def test_a_small_object_that_expands_to_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentfarm.storage.pick_state.MAX_OBJECT_BYTES", 1_000)
    with pytest.raises(InputError, match="is damaged"):
        list(parse_lines(gzip.compress(b"\n" * 1_001), "key"))
