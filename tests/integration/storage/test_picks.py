"""Picks in a real bucket: writers at the same time, images that are rendered again, deletion, and damaged objects."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.done_jobs import done_batch, finish

from latentfarm import Batch, Farm, InputError
from latentfarm.errors import ConflictError, NotFoundError
from latentfarm.ledger import Ledger
from latentfarm.recovery.recover import list_batches, recover_batch
from latentfarm.storage import picks
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import batch_prefix, picks_key, picks_prefix
from latentfarm.storage.orphans import collect_orphans
from latentfarm.storage.pick_state import PickChange, PickCounts
from latentfarm.storage.picks import PickJournal

pytestmark = pytest.mark.integration


def decided(batch: Batch) -> list[tuple[int, str | None, int | None]]:
    return [(each.index, each.pick, each.rating) for each in batch.picks()]


def objects(farm: Farm, name: str = "cats") -> list[str]:
    return list(farm.bucket.keys(picks_prefix(name)))


def test_images_are_picked_rejected_rated_and_none_of_it_is_stored_in_redis(farm: Farm) -> None:
    batch = done_batch(farm, ["a", "b", "c", "d"])
    before = {key: farm.ledger.redis.dump(key) for key in farm.ledger.redis.scan_iter()}
    assert batch.pick([0, 2], "picked") == PickCounts(2, 0, 0)
    assert batch.pick([1], "rejected", rating=2) == PickCounts(2, 1, 1)
    # a field that is not given stays
    assert batch.pick([0], rating=5) == PickCounts(2, 1, 2)
    assert batch.pick([2], None) == PickCounts(1, 1, 2)
    assert decided(farm.batch("cats")) == [(0, "picked", 5), (1, "rejected", 2)]
    assert {key: farm.ledger.redis.dump(key) for key in farm.ledger.redis.scan_iter()} == before
    lines = list(farm.batch("cats").results())
    assert [(line.get("pick"), line.get("rating")) for line in lines] == [
        ("picked", 5),
        ("rejected", 2),
        (None, None),
        (None, None),
    ]
    assert "pick" not in lines[2]
    assert [[line["index"] for line in batch.results(picks=[word])] for word in ("picked", "rejected", "none")] == [
        [0],
        [1],
        [2, 3],
    ]
    assert [line["index"] for line in batch.results([0, 1, 3], picks=["picked", "none"])] == [0, 3]
    assert [line["index"] for line in batch.results([1, 2], picks=["rejected"])] == [1]


def test_only_picked_images_are_fetched_and_tables_have_the_decisions(farm: Farm, tmp_path: Path) -> None:
    batch = done_batch(farm, ["a", "b", "c"])
    batch.pick([1], "picked", rating=4)
    batch.fetch(tmp_path, picks=["picked"])
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["000001.png"]
    [line] = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    [sample] = map(json.loads, (tmp_path / "metadata.jsonl").read_text().splitlines())
    assert (line["pick"], line["rating"], sample["pick"], sample["rating"]) == ("picked", 4, "picked", 4)
    batch.fetch(tmp_path)
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    assert [(each["pick"], each["rating"]) for each in map(json.loads, lines)] == [("", 0), ("picked", 4), ("", 0)]


def test_what_has_no_image_cannot_be_picked_and_nothing_of_the_call_is_stored(farm: Farm) -> None:
    batch = done_batch(farm, ["a", "b", "c"], fail=[1])
    with pytest.raises(ConflictError, match=r"job cats/1 is failed; only the image of a done job"):
        batch.pick([0, 1], "picked")
    with pytest.raises(NotFoundError, match=r"job cats/3 does not exist; the batch has the jobs 0 to 2"):
        batch.pick([3], "picked")
    with pytest.raises(NotFoundError):
        batch.pick([-1], "picked")
    with pytest.raises(InputError, match=r"job cats/0 is named twice"):
        batch.pick([0, 0], "picked")
    with pytest.raises(InputError, match=r"job cats/0: rating 6; write 1 to 5"):
        batch.pick([0], rating=6)
    with pytest.raises(InputError, match=r"pick 'kept': write one of picked, rejected, or None"):
        batch.pick([0], "kept")
    with pytest.raises(InputError, match=r"pick 'kept': write one of picked, rejected, none"):
        list(batch.results(picks=["kept"]))
    assert objects(farm) == []
    assert batch.pick([], "picked") == PickCounts(0, 0, 0)
    assert batch.pick([0]) == PickCounts(0, 0, 0)
    assert objects(farm) == []


def test_of_writers_at_the_same_time_none_loses_a_decision_and_objects_stay_few(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picks, "_MAX_OBJECTS", 4)
    count, writers = 40, 4
    done_batch(farm, [f"cat {index}" for index in range(count)])

    def work(writer: int) -> None:
        batch = Batch(farm.connection, "cats")
        for index in range(writer, count, writers):
            batch.pick([index], "picked" if index % 2 else "rejected", rating=index % 5 + 1)

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(work, range(writers)))
    expected = [(index, "picked" if index % 2 else "rejected", index % 5 + 1) for index in range(count)]
    assert decided(farm.batch("cats")) == expected
    assert len(objects(farm)) <= 4 + writers


def test_a_decision_overrules_what_its_maker_saw_even_if_the_clock_of_redis_runs_backwards(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = done_batch(farm, ["a"])
    batch.pick([0], "picked")
    monkeypatch.setattr(Ledger, "now_us", lambda _: 1)
    farm.batch("cats").pick([0], "rejected")
    assert decided(batch) == [(0, "rejected", None)]


def test_an_image_that_is_rendered_again_has_no_pick(farm: Farm) -> None:
    batch = done_batch(farm, ["a", "b"])
    batch.pick([0, 1], "picked", rating=3)
    [lost, _] = batch.results()
    farm.bucket.delete([lost["key"]])
    recover_batch(farm.ledger, farm.bucket, "cats", dry_run=True)
    assert len(decided(batch)) == 2
    recover_batch(farm.ledger, farm.bucket, "cats")
    finish(farm)
    again, kept = batch.results()
    assert again["epoch"] > lost["epoch"]
    assert ("pick" in again, kept["pick"]) == (False, "picked")
    assert [line["index"] for line in batch.results(picks=["picked"])] == [1]
    # who picks what is not decided yet finds it
    assert [line["index"] for line in batch.results(picks=["none"])] == [0]
    batch.pick([0], "rejected")
    # nothing of the decision about the old image is left
    assert decided(batch) == [(0, "rejected", None), (1, "picked", 3)]


def test_picks_survive_gc_and_the_loss_of_redis(farm: Farm) -> None:
    batch = done_batch(farm, ["a", "b"])
    batch.pick([0], "picked")
    assert collect_orphans(farm.ledger, farm.bucket, "cats") == 0
    farm.ledger.redis.flushall()
    assert list(list_batches(farm.bucket)) == ["cats"]
    recover_batch(farm.ledger, farm.bucket, "cats")
    assert [line.get("pick") for line in farm.batch("cats").results()] == ["picked", None]


def test_the_picks_of_a_batch_are_deleted_with_it(farm: Farm) -> None:
    batch = done_batch(farm, ["a"])
    batch.pick([0], "picked")
    batch.delete()
    assert list(farm.bucket.keys(batch_prefix("cats"))) == []
    with pytest.raises(NotFoundError):
        batch.picks()
    with pytest.raises(NotFoundError):
        batch.pick([0], "picked")
    # a batch of the same name begins without picks, for those who have read the old ones as well
    done_batch(farm, ["a"])
    assert decided(batch) == []


def test_a_decision_that_is_stored_while_its_batch_is_deleted_leaves_nothing(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = done_batch(farm, ["a"])
    put = Bucket.put

    def put_late(self: Bucket, key: str, body: bytes, **options: Any) -> None:
        farm.batch("cats").delete()
        put(self, key, body, **options)

    monkeypatch.setattr(Bucket, "put", put_late)
    with pytest.raises(NotFoundError, match="is deleted"):
        batch.pick([0], "picked")
    assert objects(farm) == []


def test_a_damaged_object_of_the_journal_is_named_and_its_cure_works(farm: Farm) -> None:
    batch = done_batch(farm, ["a"])
    batch.pick([0], "picked")
    key = picks_key("cats", 1, "f" * 16, 1)
    farm.bucket.put(key, b"damaged")
    farm.bucket.put(f"{picks_prefix('cats')}notes.txt", b"foreign")
    reader = farm.batch("cats")
    with pytest.raises(InputError, match=f"{key} is damaged; delete the object"):
        list(reader.results())
    farm.bucket.delete([key])
    assert decided(reader) == [(0, "picked", None)]


def test_a_batch_keeps_a_bounded_number_of_decisions(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picks, "MAX_DECIDED", 2)
    batch = done_batch(farm, ["a", "b", "c"])
    batch.pick([0, 1], "picked")
    with pytest.raises(InputError, match="at most 2 are kept"):
        batch.pick([2], "picked")
    assert batch.pick([0, 1], "rejected") == PickCounts(0, 2, 0)


def test_results_of_a_batch_without_picks_cost_one_listing_more(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = done_batch(farm, ["a", "b"])
    listed: list[str] = []
    keys = Bucket.keys

    def count(self: Bucket, prefix: str, **options: Any) -> Any:
        listed.append(prefix)
        return keys(self, prefix, **options)

    read: list[str] = []
    get = Bucket.get
    monkeypatch.setattr(Bucket, "keys", count)
    monkeypatch.setattr(Bucket, "get", lambda self, key: read.append(key) or get(self, key))  # type: ignore[func-returns-value]
    assert len(list(batch.results())) == 2
    assert listed == [picks_prefix("cats")]
    assert len(read) == 2


def test_a_decision_about_an_image_that_the_job_has_not_does_not_count(farm: Farm) -> None:
    batch = done_batch(farm, ["a"])
    journal = PickJournal(farm.bucket, "cats")
    journal.write(farm.ledger, [PickChange(0, 12, rating=4)])
    assert "rating" not in next(batch.results())
    assert [each.epoch for each in batch.picks()] == [12]
