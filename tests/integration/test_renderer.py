"""A worker's loop in this process: the real engine, Redis and store, and a store that fails on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest
import torch
from tests.conftest import until
from tests.tiny import make_tiny

from latentfarm import Batch, Farm, UnavailableError
from latentfarm.bucket import Bucket
from latentfarm_worker.engine import Engine
from latentfarm_worker.families import Family, load_family
from latentfarm_worker.renderer import Renderer
from latentfarm_worker.trace import Tracer

pytestmark = pytest.mark.integration

SMALL = {"width": 64, "height": 64, "num_inference_steps": 3, "scheduler": "euler"}


class FaultyBucket(Bucket):
    """The real store, but the puts of images fail as long as ``refuses`` says so; ``refused`` is set by the first."""

    def __init__(self, real: Bucket, refuses: Callable[[], bool]) -> None:
        super().__init__(real.client, real.name, where=real.where)
        self.refuses = refuses
        self.refused = Event()

    def put(self, key: str, body: bytes, *, content_type: str = "application/octet-stream") -> None:
        if "/images/" in key and self.refuses():
            self.refused.set()
            raise UnavailableError("503 Slow Down")
        super().put(key, body, content_type=content_type)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    model = make_tiny(tmp_path_factory.mktemp("model") / "tiny")
    return load_family(model, dtype=torch.float32, device=torch.device("cpu"))


@contextmanager
def renderer(farm: Farm, family: Family, bucket: Bucket | None = None) -> Iterator[Renderer]:
    tracer = Tracer(family)
    made = Renderer(
        ledger=farm.ledger,
        bucket=bucket or farm.bucket,
        engine=Engine(family, slots=2, on_step=tracer),
        tracer=tracer,
        model="mini",
        worker="worker-a",
        lease_s=30,
    )
    try:
        yield made
    finally:
        made.close()


def submit(farm: Farm, count: int, **fields: Any) -> Batch:
    return farm.submit([{"prompt": f"p{n}", **SMALL, **fields} for n in range(count)], batch="b")


def test_pictures_wait_out_a_store_that_refuses_and_are_rendered_once(farm: Farm, family: Family) -> None:
    batch = submit(farm, 5)
    left = iter(range(4))
    with renderer(farm, family, FaultyBucket(farm.bucket, lambda: next(left, None) is not None)) as worker:
        assert worker.render_all() == 5
        status = batch.wait(timeout_s=60)
    assert (status.done, status.state) == (5, "complete")
    assert {job.attempts for job in batch.jobs()} == {1}


def test_a_worker_stopped_during_an_outage_commits_nothing_that_is_not_stored(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2)
    bucket = FaultyBucket(farm.bucket, lambda: True)
    with renderer(farm, family, bucket) as worker:
        assert worker.render_all() == 2
        assert bucket.refused.wait(10)
    status = batch.status()
    assert (status.done, status.pending, status.leased) == (0, 2, 0)
    assert [(job.state, job.attempts) for job in batch.jobs()] == [("pending", 0)] * 2
    with renderer(farm, family) as worker:
        worker.render_all()
    assert batch.status().done == 2


def test_a_drained_worker_gives_unfinished_jobs_back_uncharged(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2, num_inference_steps=500)
    with renderer(farm, family) as worker:
        thread = Thread(target=worker.render_all)
        thread.start()
        batch_is_leased = Event()
        while not batch_is_leased.wait(0.01):
            if batch.status().leased == 2:
                batch_is_leased.set()
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()
    assert batch.status().pending == 2
    assert [lease.attempts for lease in farm.ledger.lease("mini", "w", 2, lease_s=30)] == [0, 0]


def test_a_cancelled_batch_frees_its_slots_before_the_next_step_but_one(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2, num_inference_steps=500)
    with renderer(farm, family) as worker:
        thread = Thread(target=worker.render_all)
        thread.start()
        until(lambda: batch.status().leased == 2)
        batch.cancel()
        thread.join(10)
        assert not thread.is_alive()
    status = batch.status()
    assert (status.state, status.done, status.cancelled, status.leased) == ("cancelled", 0, 2, 0)


def test_a_worker_measures_what_it_renders(farm: Farm, family: Family) -> None:
    submit(farm, 3)
    with renderer(farm, family) as worker:
        worker.render_all()
    measured = worker.meter.take()
    assert (measured["images"], measured["pixels"], measured["work"]) == (3, 3 * 64 * 64, 3 * 64 * 64 * 3 * 2)
    assert measured["busy_s"] > 0
    assert measured["size_bytes"] > 3 * 64
    assert worker.meter.take() == {}


def test_a_step_that_breaks_costs_its_jobs_an_attempt_and_no_more(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, broken = family.predict, iter([True])

    def predict_after_breaking(*tensors: torch.Tensor) -> torch.Tensor:
        if next(broken, False):
            raise RuntimeError("boom")
        return predict(*tensors)

    monkeypatch.setattr(family, "predict", predict_after_breaking)
    batch = submit(farm, 2)
    with renderer(farm, family) as worker:
        while not batch.status().complete:
            worker.render_all()
    assert [(job.state, job.attempts, job.error) for job in batch.jobs()] == [("done", 2, None)] * 2


def test_a_step_that_always_breaks_fails_its_jobs_and_ends(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_always(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("boom")

    monkeypatch.setattr(family, "predict", break_always)
    batch = submit(farm, 1)
    with renderer(farm, family) as worker:
        while not batch.status().complete:
            worker.render_all()
    [job] = batch.jobs()
    assert job.error is not None
    assert (job.state, job.attempts, job.error["code"]) == ("failed", 3, "render")
    assert "boom" in job.error["message"]


def test_a_job_that_cannot_be_rendered_fails_alone_with_its_reason(farm: Farm, family: Family) -> None:
    rows = [{"prompt": "good", **SMALL}, {"prompt": "bad", **SMALL, "scheduler_options": {"no_such_option": 1}}]
    batch = farm.submit(rows, batch="b")
    with renderer(farm, family) as worker:
        worker.render_all()
    good, bad = batch.jobs()
    assert good.state == "done"
    assert bad.error is not None
    assert (bad.state, bad.error["code"]) == ("failed", "scheduler")
    assert "no_such_option" in bad.error["message"]
    assert batch.status().complete


def test_the_same_job_gives_the_same_file_alone_and_in_company(farm: Farm, family: Family) -> None:
    batch = submit(farm, 6)
    with renderer(farm, family) as worker:
        worker.render_all()
    receipts = list(batch.results())
    first = [farm.bucket.get(line["key"]) for line in receipts]
    assert {"plan", "model_digest", "device", "dtype", "slots"} <= receipts[0].keys()
    farm.ledger.redis.flushall()
    farm.ledger.reserve("b", digest="again", model="mini")
    farm.ledger.grow("b", before=0, total=6, chain="c", closed=True)
    farm.ledger.redis.hset("lf:batch:b", "cursor", 5)
    with renderer(farm, family) as worker:
        assert worker.render_all() == 1
    [again] = (line for line in farm.batch("b").results() if line["state"] == "done")
    assert again["key"] != receipts[5]["key"]
    assert farm.bucket.get(again["key"]) == first[5]
