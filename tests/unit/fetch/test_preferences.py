"""Pairs of a preference set: which images are compared, in which order, and how many of a prompt."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from latentfarm.errors import InputError
from latentfarm.fetch import preferences
from latentfarm.fetch.preferences import MAX_GROUP_PAIRS, PreferenceOptions, is_better, preference_set
from latentfarm.storage.bucket import Bucket

pytestmark = pytest.mark.unit

NO_BUCKET = cast("Bucket", None)


def result(index: int, pick: str | None, rating: int | None, prompt: str = "a", negative: str = "") -> dict[str, Any]:
    decided = {name: value for name, value in (("pick", pick), ("rating", rating)) if value is not None}
    request = {"prompt": prompt, "negative_prompt": negative}
    return {"index": index, "state": "done", "key": f"k{index}", "sha256": "", "request": request, **decided}


def rows_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    body = b"".join(preference_set(NO_BUCKET, results, PreferenceOptions()))
    return cast("list[dict[str, Any]]", parquet.read_table(io.BytesIO(body)).to_pylist())


def pairs_of(results: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["chosen_index"], row["rejected_index"]) for row in rows_of(results)]


DECISIONS = st.tuples(st.sampled_from([None, "picked", "rejected"]), st.none() | st.integers(1, 5))


@pytest.mark.parametrize(
    ("one", "other", "better"),
    [
        (("picked", 0), ("rejected", 0), True),
        # the pick wins over the ratings
        (("picked", 1), ("rejected", 5), True),
        (("rejected", 5), ("picked", 1), False),
        (("picked", 5), ("picked", 4), True),
        (("rejected", 2), ("rejected", 1), True),
        (("", 3), ("", 2), True),
        (("picked", 2), ("", 3), False),
        (("", 3), ("picked", 2), True),
        (("", 2), ("", 2), False),
        # nothing is known about an image without a rating
        (("picked", 5), ("", 0), False),
        (("picked", 0), ("picked", 4), False),
        (("", 0), ("rejected", 0), False),
    ],
)
def test_one_image_is_preferred_to_another(one: tuple[str, int], other: tuple[str, int], *, better: bool) -> None:
    assert is_better(one, other) is better
    assert not (better and is_better(other, one))


@given(st.lists(st.tuples(DECISIONS, st.sampled_from("abc"), st.sampled_from(["", "x"])), max_size=14))
def test_each_pair_of_a_prompt_of_which_one_is_preferred_is_there_once(
    jobs: list[tuple[tuple[str | None, int | None], str, str]],
) -> None:
    results = [result(index, *decided, prompt, negative) for index, (decided, prompt, negative) in enumerate(jobs)]

    def is_pair(one: int, other: int) -> bool:
        (first, *prompts), (second, *other_prompts) = jobs[one], jobs[other]
        marks = [(pick or "", rating or 0) for pick, rating in (first, second)]
        return prompts == other_prompts and is_better(marks[0], marks[1])

    expected = {(one, other) for one in range(len(jobs)) for other in range(len(jobs)) if is_pair(one, other)}
    rows = rows_of(results)
    assert Counter((row["chosen_index"], row["rejected_index"]) for row in rows) == Counter(expected)
    for row in rows:
        chosen = jobs[row["chosen_index"]]
        assert (row["prompt"], row["negative_prompt"]) == chosen[1:]
        assert row["chosen"] == {"bytes": None, "path": f"k{row['chosen_index']}"}
    # groups are in the order of their first jobs about which something is decided
    decided_jobs = [index for index, (decided, *_) in enumerate(jobs) if any(decided)]
    firsts = [next(each for each in decided_jobs if jobs[each][1:] == jobs[row["chosen_index"]][1:]) for row in rows]
    assert firsts == sorted(firsts)


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_prompt_has_a_bounded_number_of_pairs_in_which_its_images_are_used_equally_often(
    picked: int, rejected: int
) -> None:
    results = [result(index, "picked" if index < picked else "rejected", None) for index in range(picked + rejected)]
    pairs = pairs_of(results)
    assert len(pairs) == len(set(pairs)) == min(picked * rejected, MAX_GROUP_PAIRS)
    for side, images in ((0, picked), (1, rejected)):
        used = Counter(pair[side] for pair in pairs)
        assert max(used.values()) - min(used.values()) <= (1 if len(used) == images else 0)


def test_pairs_by_rating_and_by_pick_take_turns() -> None:
    results = [result(index, None, index % 2 + 1) for index in range(60)]
    results += [result(100 + index, "picked" if index % 2 else "rejected", None) for index in range(60)]
    pairs = pairs_of(results)
    assert Counter(chosen >= 100 for chosen, _ in pairs) == {True: 50, False: 50}


def test_row_groups_are_bounded_and_written_while_pairs_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences, "_GROUP_ROWS", 10)
    results = [
        result(2 * prompt + side, ["picked", "rejected"][side], None, f"prompt {prompt}")
        for prompt in range(35)
        for side in range(2)
    ]
    pieces = list(preference_set(NO_BUCKET, results, PreferenceOptions()))
    assert len(pieces) == 4
    file = parquet.ParquetFile(io.BytesIO(b"".join(pieces)))
    assert [file.metadata.row_group(group).num_rows for group in range(4)] == [10, 10, 10, 5]


def test_a_batch_without_pairs_is_a_table_without_rows() -> None:
    assert rows_of([]) == []
    assert rows_of([result(0, "picked", 5), result(1, None, None)]) == []


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="'files' is unknown; write one of keys, bytes"):
        PreferenceOptions("files")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the form pickapic has the bytes of images"):
        PreferenceOptions("keys", "pickapic")
