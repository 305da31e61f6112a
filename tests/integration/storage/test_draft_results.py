"""Result lines of drafts that are kept: of writers at the same time none is lost, and objects stay few."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from latentfarm import Farm, InputError
from latentfarm.storage import draft_results
from latentfarm.storage.draft_results import DraftResults, Lines
from latentfarm.storage.keys import draft_results_key, parse_draft_results_key

pytestmark = pytest.mark.integration


def line(index: int, epoch: int = 1) -> dict[str, Any]:
    return {"index": index, "epoch": epoch, "scores": {"sharpness": index / 7}}


def stored(farm: Farm, part: int) -> Lines:
    kept = DraftResults(farm.bucket, "cats")
    return kept.read(part, kept.parts().get(part, []))


def test_of_writers_at_the_same_time_no_line_is_lost_and_objects_stay_few(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_results, "_MAX_OBJECTS", 4)
    writers, count = 3, 24

    def work(writer: int) -> None:
        kept = DraftResults(farm.bucket, "cats")
        for index in range(writer, count, writers):
            kept.write(2, kept.parts().get(2, []), {2_000 + index: line(2_000 + index)})
            assert kept.read(2, kept.parts()[2])[2_000 + index] == line(2_000 + index)

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(work, range(writers)))
    assert stored(farm, 2) == {2_000 + index: line(2_000 + index) for index in range(count)}
    keys = DraftResults(farm.bucket, "cats").parts()
    assert list(keys) == [2]
    assert len(keys[2]) <= 4 + writers


def test_of_a_job_the_line_of_its_newest_draft_counts_and_nothing_is_written_twice(farm: Farm) -> None:
    kept = DraftResults(farm.bucket, "cats")
    for lines in ({1: line(1, 5)}, {0: line(0), 1: line(1, 9)}, {1: line(1, 7)}, {1: line(1, 7)}, {}):
        kept.write(0, [], lines)
    assert stored(farm, 0) == {0: line(0), 1: line(1, 9)}
    assert list(stored(farm, 0)) == [0, 1]
    assert len(kept.parts()[0]) == 3
    assert stored(farm, 1) == {}


def test_a_damaged_object_is_named(farm: Farm) -> None:
    key = draft_results_key("cats", 3, "0123456789abcdef")
    farm.bucket.put(key, b"no gzip")
    assert parse_draft_results_key(key) == 3
    assert parse_draft_results_key(key.replace("draft-results", "results")) is None
    with pytest.raises(InputError, match=rf"^{key} is cut or damaged"):
        stored(farm, 3)
