"""A worker's loop in this process: the real engine, Redis and store, and a store that fails on purpose."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Event, Semaphore, Thread
from typing import Any, cast

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import until
from tests.rendering import renderer
from tests.tiny import make_tiny

from latentfarm import Batch, Farm, UnavailableError
from latentfarm.bucket import Bucket
from latentfarm.schedulers import resolve
from latentfarm_worker.families import Family, load_family
from latentfarm_worker.pulse import Phase
from latentfarm_worker.renderer import Host

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
    assert worker.meter.take().keys() == {"wall_s"}


def test_a_step_that_breaks_costs_its_jobs_an_attempt_and_no_more(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, broken = family.predict, iter([True])

    def predict_after_breaking(*told: Any) -> torch.Tensor:
        if next(broken, False):
            raise RuntimeError("boom")
        return predict(*told)

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


def test_a_text_that_lost_its_end_is_told_and_one_that_is_encoded_whole_is_not(farm: Farm, family: Family) -> None:
    long = "a long (and:1.3) winding road, " * 9
    cut: list[dict[str, Any]] = [{"prompt": long}, {"prompt": "road", "negative_prompt": long}]
    whole = [{**row, "prompt_syntax": "a1111", "clip_skip": 1} for row in cut]
    batch = farm.submit([{**row, **SMALL} for row in (*cut, *whole, {"prompt": "a", "clip_skip": 2})], batch="b")
    with renderer(farm, family) as worker:
        worker.render_all()
    lines = list(batch.results())
    told = [(line.get("prompt_truncated"), line.get("negative_prompt_truncated")) for line in lines]
    assert told == [(True, None), (False, True), (False, None), (False, None), (None, None)]
    asked = [(line["request"].get("prompt_syntax"), line["request"].get("clip_skip")) for line in lines]
    assert asked == [(None, None), (None, None), ("a1111", 1), ("a1111", 1), (None, 2)]
    assert lines[4]["error"]["code"] == "clip_skip"
    assert (batch.status().truncated, batch.status().done) == (2, 4)


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


def test_xl_and_turbo_pictures_go_the_same_way_and_are_what_the_pipeline_makes_of_their_receipts(
    farm: Farm, tmp_path: Path
) -> None:
    folder = make_tiny(tmp_path / "xl", kind="sdxl")
    turbo = {"scheduler": "euler_a", "scheduler_options": {"timestep_spacing": "trailing"}, "guidance_scale": 0.0}
    rows = [
        {"prompt": "plain", **SMALL},
        {"prompt": "told what not to show", "negative_prompt": "blurry", **SMALL, "width": 96},
        {"prompt": "in one step", **SMALL, **turbo, "num_inference_steps": 1},
    ]
    batch = farm.submit(rows, batch="b")
    with renderer(farm, load_family(folder, dtype=torch.float32, device=torch.device("cpu"))) as worker:
        assert worker.render_all() == 3
    receipts = list(batch.results())
    assert [line["state"] for line in receipts] == ["done"] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        for line in receipts:
            asked = dict(line["request"])
            scheduler, options = asked.pop("scheduler"), asked.pop("scheduler_options")
            kind = getattr(diffusers, resolve(scheduler).class_name)
            pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
            generator = torch.Generator("cpu").manual_seed(asked.pop("seed"))
            asked["negative_prompt"] = asked["negative_prompt"] or None
            wanted = np.asarray(pipe(**asked, generator=generator).images[0]).astype(int)
            with Image.open(io.BytesIO(farm.bucket.get(line["key"]))) as image:
                assert np.abs(np.asarray(image).astype(int) - wanted).max() <= 1, line["request"]


# -- ending ------------------------------------------------------------------------------------------------------


class Told(Host):
    """A host that notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.woken, self.was_broken = Event(), Event()

    def wake_others(self) -> None:
        self.woken.set()

    def broken(self) -> None:
        self.was_broken.set()


class Paced:
    """A family whose steps are let through one by one, or take a while."""

    def __init__(self, family: Family, before_step: Callable[[], None]) -> None:
        self._family = family
        self._before_step = before_step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def predict(self, *told: Any) -> torch.Tensor:
        self._before_step()
        return self._family.predict(*told)


def test_a_draining_worker_finishes_what_fits_and_gives_the_rest_back_at_once(farm: Farm, family: Family) -> None:
    rows = [{"prompt": "short", **SMALL}, {"prompt": "long", **SMALL, "num_inference_steps": 500}]
    batch = farm.submit(rows, batch="b")
    steps, go = Semaphore(0), Semaphore(0)

    def before_step() -> None:
        steps.release()
        go.acquire()

    host = Told()
    with renderer(farm, cast("Family", Paced(family, before_step)), host=host) as worker:
        worker._step_s.append(0.1)  # as measured
        thread = Thread(target=worker.render_all)
        thread.start()
        steps.acquire()
        worker.drain(until=time.monotonic() + 10)
        # at once: the engine is within a step
        assert (batch.status().pending, batch.status().leased) == (1, 1)
        assert host.woken.is_set()
        go.release(1_000)
        thread.join(30)
        assert not thread.is_alive()
        until(lambda: batch.status().done == 1)
    assert [(job.state, job.attempts) for job in batch.jobs()] == [("done", 1), ("pending", 0)]


def test_a_draining_worker_leases_nothing_more(farm: Farm, family: Family) -> None:
    batch = submit(farm, 5)
    with renderer(farm, family) as worker:
        worker.drain(until=time.monotonic() + 10)
        assert worker.render_all() == 0
    assert batch.status().pending == 5


def test_what_turns_out_not_to_fit_goes_back_even_while_the_engine_is_blocked(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2)
    blocked, go = Event(), Event()

    def before_step() -> None:
        blocked.set()
        go.wait()

    with renderer(farm, cast("Family", Paced(family, before_step))) as worker:
        worker._step_s.append(0.01)
        thread = Thread(target=worker.render_all)
        thread.start()
        assert blocked.wait(30)
        worker.drain(until=time.monotonic() + 0.5)
        assert batch.status().leased == 2

        def all_back() -> bool:
            worker.give_back_late()
            return batch.status().pending == 2

        until(all_back, timeout_s=5)
        assert not worker.holds_jobs
        go.set()
        thread.join(30)
    assert [(job.state, job.attempts) for job in batch.jobs()] == [("pending", 0)] * 2


def test_a_drain_waits_for_the_store_until_its_deadline(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2)
    bucket = FaultyBucket(farm.bucket, lambda: True)
    with renderer(farm, family, bucket) as worker:
        assert worker.render_all() == 2
        assert bucket.refused.wait(10)
        worker.drain(until=time.monotonic() + 30)
        assert batch.status().leased == 2
        closing = Thread(target=worker.close)
        closing.start()
        bucket.refuses = lambda: False
        closing.join(30)
        assert not closing.is_alive()
    assert batch.status().done == 2


def test_a_lost_device_gives_everything_back_uncharged_and_is_never_used_again(farm: Farm, family: Family) -> None:
    batch = submit(farm, 5)
    calls = []

    def lose_the_device() -> None:
        calls.append(1)
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    host = Told()
    with renderer(farm, cast("Family", Paced(family, lose_the_device)), host=host) as worker:
        assert worker.render_all() == 0
        assert host.was_broken.is_set()
        assert batch.status().pending == 5
        assert worker.render_all() == 0
    assert calls == [1]
    assert {job.attempts for job in batch.jobs()} == {0}


# -- outages -----------------------------------------------------------------------------------------------------


def test_while_the_store_is_away_leasing_stops_at_a_full_backlog_and_nothing_is_rendered_twice(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfarm_worker.renderer._MAX_BACKLOG", 4)
    batch = submit(farm, 14, num_inference_steps=1)
    away = Event()
    away.set()
    steps: list[int] = []
    made: list[int] = []
    family_that_counts = cast("Family", Paced(family, lambda: steps.append(1)))
    with renderer(farm, family_that_counts, FaultyBucket(farm.bucket, away.is_set)) as worker:
        thread = Thread(target=lambda: made.append(worker.render_all()))
        thread.start()
        # two slots' worth beyond the backlog: 4 + 2 * 2, and no step is made with nothing to do
        until(lambda: worker._delivery.waiting == 8)
        before = len(steps)
        assert (batch.status().leased, batch.status().pending) == (8, 6)
        thread.join(0.5)
        assert (len(steps), worker._host.pulse.phase) == (before, Phase.IDLE)
        away.clear()
        thread.join(60)
        assert not thread.is_alive()
        until(lambda: batch.status().done == 14)
    assert {job.attempts for job in batch.jobs()} == {1}
    assert made == [14]


def test_a_full_backlog_does_not_keep_a_worker_from_draining(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfarm_worker.renderer._MAX_BACKLOG", 1)
    batch = submit(farm, 14, num_inference_steps=1)
    with renderer(farm, family, FaultyBucket(farm.bucket, lambda: True)) as worker:
        thread = Thread(target=worker.render_all)
        thread.start()
        until(lambda: worker._delivery.waiting == 5)
        worker.drain(until=time.monotonic() + 0.2)
        thread.join(10)
        assert not thread.is_alive()
    assert (batch.status().pending, batch.status().leased) == (14, 0)
    assert {job.attempts for job in batch.jobs()} == {0}


def test_leases_of_pictures_that_wait_for_the_store_are_renewed(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2, num_inference_steps=1)
    away = Event()
    away.set()
    with renderer(farm, family, FaultyBucket(farm.bucket, away.is_set), lease_s=1) as worker:
        assert worker.render_all() == 2
        first = _earliest(farm)
        # three leases later they are still ours
        until(lambda: _earliest(farm) > first + 3_000, timeout_s=30)
        assert farm.ledger.sweep() == 0
        away.clear()
        until(lambda: batch.status().done == 2)
    assert {job.attempts for job in batch.jobs()} == {1}


def _earliest(farm: Farm) -> float:
    client: Any = farm.ledger.redis
    return min((float(score) for _, score in client.zrange("lf:leases", 0, -1, withscores=True)), default=0.0)


def test_a_queue_that_is_away_keeps_no_engine_from_its_next_step(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submit(farm, 3, num_inference_steps=6)
    away = Event()
    lease, commit = farm.ledger.lease, farm.ledger.commit
    steps: list[int] = []

    def lease_unless_away(*arguments: Any, **named: Any) -> Any:
        if away.is_set():
            raise UnavailableError("Redis cannot be used")
        return lease(*arguments, **named)

    def commit_unless_away(*arguments: Any, **named: Any) -> Any:
        if away.is_set():
            raise UnavailableError("Redis cannot be used")
        return commit(*arguments, **named)

    def count() -> None:
        steps.append(1)
        # from the first step on: once a step was measured the third job would be leased ahead
        if len(steps) == 1:
            away.set()

    monkeypatch.setattr(farm.ledger, "lease", lease_unless_away)
    monkeypatch.setattr(farm.ledger, "commit", commit_unless_away)
    with renderer(farm, cast("Family", Paced(family, count))) as worker:
        thread = Thread(target=worker.render_all)
        thread.start()
        until(lambda: worker._delivery.waiting == 2)
        assert len(steps) == 6
        away.clear()
        thread.join(30)
        assert not thread.is_alive()
        until(lambda: batch.status().done == 3)
    assert {job.attempts for job in batch.jobs()} == {1}
    assert len(steps) == 12


def test_a_manifest_that_cannot_be_read_now_is_read_later(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2)
    left = iter(range(3))

    class Unread(Bucket):
        def get(self, key: str) -> bytes:
            if "/manifest/" in key and next(left, None) is not None:
                raise UnavailableError("503 Slow Down")
            return super().get(key)

    bucket = Unread(farm.bucket.client, farm.bucket.name, where=farm.bucket.where)
    with renderer(farm, family, bucket) as worker:
        assert worker.render_all() == 2
        until(lambda: batch.status().done == 2)
    assert {job.attempts for job in batch.jobs()} == {1}
