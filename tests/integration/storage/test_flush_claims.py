"""The queue of parts to flush: each is claimed by one flush at a time, and due again if that one fails."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from tests.support.leasing import fail, flushes_due, lease

from latentfarm import Batch, Farm, UnavailableError
from latentfarm.ledger import Ledger
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import results_key
from latentfarm.storage.part_codec import unpack
from latentfarm.storage.results import flush_due, list_generations, read_part

pytestmark = pytest.mark.integration


def commit(ledger: Ledger, count: int = 1) -> list[str]:
    """Commit up to ``count`` jobs; return the outcomes."""
    held = lease(ledger, count)
    return list(ledger.commit([(each, {"key": f"key-{each.name}"}) for each in held])) if held else []


def done(farm: Farm, count: int = 1) -> None:
    commit(farm.ledger, count)


def ended(farm: Farm, name: str = "cats") -> Batch:
    """Return a batch of one job that has ended and is not flushed yet."""
    batch = farm.submit(["a"], batch=name)
    done(farm)
    return batch


def states(farm: Farm, batch: str = "cats") -> list[str]:
    """Return the states in the newest results in the bucket."""
    generations = list_generations(farm.bucket, batch)
    return [line["state"] for part in generations for line in read_part(farm.bucket, batch, part, generations[part])]


def test_eight_workers_at_once_put_each_part_once(
    farm: Farm, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"b{number}" for number in range(24)]
    for name in names:
        farm.submit(["a", "b"], batch=name)
    puts: list[str] = []
    put = Bucket.put

    def counted(self: Bucket, key: str, body: bytes, **options: Any) -> None:
        puts.append(key)
        put(self, key, body, **options)

    monkeypatch.setattr(Bucket, "put", counted)
    start = Barrier(8)

    def work(_: int) -> int:
        ledger, stored = Ledger.connect(settings.redis_url), 0
        start.wait()
        while commit(ledger):
            # also if another worker filled the part: all of them wake up at the same moments
            stored += flush_due(ledger, farm.bucket)
        return stored + flush_due(ledger, farm.bucket)

    with ThreadPoolExecutor(8) as pool:
        stored = sum(pool.map(work, range(8)))
    assert Counter(puts) == Counter(results_key(name, 0) for name in names)
    assert (stored, farm.ledger.full_parts()) == (len(names), [])


def test_a_flush_copies_receipts_as_their_commit_wrote_them(farm: Farm) -> None:
    batch = farm.submit(["a", "b"], batch="cats")
    first, second = lease(farm.ledger, 2)
    receipt = {"key": "ключ", "worker": "w", "timings": {"text": 0.1, "denoise": 1e-7}, "state": "failed", "index": 9}
    farm.ledger.commit([(first, receipt)])
    fail(farm.ledger, [second])
    before = list(batch.results())
    flush_due(farm.ledger, farm.bucket)
    assert list(batch.results()) == before
    line, _ = unpack(farm.bucket.get(results_key("cats", 0)))
    own = {"job": "cats/0", "index": 0, "state": "done", "attempts": 1}
    assert list(line.items()) == list(
        {**own, "worker": "w", "key": "ключ", "timings": receipt["timings"], "epoch": first.epoch}.items()
    )


def test_each_part_is_claimed_once_and_again_if_its_claimer_dies(farm: Farm) -> None:
    for name in ("a", "b"):
        ended(farm, name)
    assert [farm.ledger.claim_full_part() for _ in range(3)] == [("a", 0), ("b", 0), None]
    assert flush_due(farm.ledger, farm.bucket) == 0
    client: Any = farm.ledger.redis
    seconds, _ = client.time()
    due_s = [due / 1000 - seconds for _, due in client.zrange("{lf}:flush_queue", 0, -1, withscores=True)]
    assert all(55 < each <= 61 for each in due_s)
    assert farm.ledger.full_parts() == [("a", 0), ("b", 0)]
    flushes_due(farm.ledger)
    assert flush_due(farm.ledger, farm.bucket, limit=1) == 1
    assert farm.ledger.full_parts() == [("b", 0)]
    assert flush_due(farm.ledger, farm.bucket) == 1


def test_a_client_flushes_its_batch_at_once_even_if_a_worker_has_claimed_it(farm: Farm) -> None:
    batch = ended(farm)
    ended(farm, "dogs")
    assert farm.ledger.claim_full_part() == ("cats", 0)
    assert batch.wait(timeout_s=30).complete
    assert states(farm) == ["done"]
    assert farm.ledger.full_parts() == [("dogs", 0)]


def test_a_damaged_part_is_tried_again_later_and_blocks_no_other(farm: Farm) -> None:
    batch = farm.submit(["a", "b"], batch="cats")
    done(farm)
    fail(farm.ledger, lease(farm.ledger))
    flush_due(farm.ledger, farm.bucket)
    whole = farm.bucket.get(results_key("cats", 0))
    batch.retry()
    done(farm)
    # the line of the other job is there only
    farm.bucket.put(results_key("cats", 0), b"not gzip")
    client: Any = farm.ledger.redis
    due_s = []
    for number in range(3):
        ended(farm, f"dogs-{number}")
        assert flush_due(farm.ledger, farm.bucket) == 1
        seconds, micros = client.time()
        due_s.append(client.zscore("{lf}:flush_queue", "cats/0") / 1000 - seconds - micros / 1e6)
        flushes_due(farm.ledger)
    assert [round(each, -1) for each in due_s] == [10, 20, 40]
    # so is one whose object is missing
    farm.bucket.delete([results_key("cats", 0)])
    ended(farm, "dogs")
    assert flush_due(farm.ledger, farm.bucket) == 1
    assert farm.ledger.full_parts() == [("cats", 0)]
    farm.bucket.put(results_key("cats", 0), whole)
    flushes_due(farm.ledger)
    assert flush_due(farm.ledger, farm.bucket) == 1
    assert not client.exists("{lf}:flush_errors:cats")


def test_if_the_store_is_unavailable_parts_are_due_again_after_seconds(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        ended(farm, name)

    def refused(*_: object, **__: object) -> None:
        raise UnavailableError("503")

    monkeypatch.setattr(farm.bucket, "put", refused)
    with pytest.raises(UnavailableError, match="503"):
        flush_due(farm.ledger, farm.bucket)
    monkeypatch.undo()
    assert flush_due(farm.ledger, farm.bucket) == 1
    assert farm.ledger.full_parts() == [("a", 0)]
    client: Any = farm.ledger.redis
    assert client.zscore("{lf}:flush_queue", "a/0") / 1000 - client.time()[0] <= 6
    flushes_due(farm.ledger)
    assert flush_due(farm.ledger, farm.bucket) == 1
