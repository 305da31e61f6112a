"""A render loop that drains, stops or loses its device ends or parks what it can, and releases the rest uncharged."""

from __future__ import annotations

import time
from threading import Event, Semaphore, Thread
from typing import cast

import pytest
import torch
from tests.conftest import until
from tests.support.rendering import SMALL, FaultyBucket, Paced, render_loop, submit

from latentfarm import Farm
from latentfarm.ledger import Company, Lease
from latentfarm.storage.keys import checkpoint_key
from latentfarm_worker.models import Family
from latentfarm_worker.service.hooks import WorkerHooks

pytestmark = pytest.mark.integration


class RecordingHooks(WorkerHooks):
    """Hooks that record their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.notified, self.device_lost = Event(), Event()

    def notify_workers(self) -> None:
        self.notified.set()

    def on_device_lost(self) -> None:
        self.device_lost.set()


def test_a_stopped_worker_releases_unfinished_jobs_uncharged(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2, num_inference_steps=500)
    with render_loop(farm, family) as loop:
        thread = Thread(target=loop.render_all)
        thread.start()
        batch_is_leased = Event()
        while not batch_is_leased.wait(0.01):
            if batch.status().leased == 2:
                batch_is_leased.set()
        loop.stop()
        thread.join(30)
        assert not thread.is_alive()
    assert batch.status().pending == 2
    assert [lease.attempts for lease in farm.ledger.lease("mini", "w", 2, lease_s=30)] == [0, 0]


def test_a_draining_worker_finishes_what_takes_no_longer_than_a_checkpoint_and_parks_the_rest(
    farm: Farm, family: Family
) -> None:
    rows = [{"prompt": "short", **SMALL}, {"prompt": "long", **SMALL, "num_inference_steps": 500}]
    batch = farm.submit(rows, batch="b")
    steps, go = Semaphore(0), Semaphore(0)

    def before_step() -> None:
        steps.release()
        go.acquire()

    hooks = RecordingHooks()
    with render_loop(farm, cast("Family", Paced(family, before_step)), hooks=hooks) as loop:
        # so often that the steps of this run, which wait, do not change the median
        for _ in range(16):
            loop._supply.add_step(0.1)
        # a checkpoint is stored and read in a second
        loop._parking._checkpoints.add_image(0.5)
        thread = Thread(target=loop.render_all)
        thread.start()
        assert steps.acquire(timeout=60)
        if len(loop._engine._running) < 2:
            # it begins with the next step
            until(lambda: bool(loop._supply.ahead._ready), timeout_s=60)
            go.release()
            assert steps.acquire(timeout=60)
        loop.drain(time.monotonic() + 30)
        assert batch.status().leased == 2
        go.release(1_000)
        thread.join(30)
        assert not thread.is_alive()
        until(lambda: batch.status().done == 1 and hooks.notified.is_set())
    assert [(job.state, job.attempts) for job in batch.jobs()] == [("done", 1), ("pending", 0)]
    [lease] = farm.ledger.lease("mini", "w", 2, lease_s=30)
    assert farm.bucket.exists(checkpoint_key("b", 1, lease.checkpoint))
    assert loop.metrics.instruments.evaluations.labels("mini", "lost")._value.get() == 0


def test_a_draining_worker_leases_no_more(farm: Farm, family: Family) -> None:
    batch = submit(farm, 5)
    with render_loop(farm, family) as loop:
        loop.drain(time.monotonic() + 10)
        assert loop.render_all() == 0
    assert batch.status().pending == 5


def test_a_job_that_no_longer_fits_is_released_even_if_the_engine_hangs(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2)
    blocked, go = Event(), Event()

    def before_step() -> None:
        blocked.set()
        go.wait()

    with render_loop(farm, cast("Family", Paced(family, before_step))) as loop:
        loop._supply.add_step(0.01)
        thread = Thread(target=loop.render_all)
        thread.start()
        assert blocked.wait(30)
        loop.drain(time.monotonic() + 0.5)
        assert batch.status().leased == 2

        def all_released() -> bool:
            loop.release_unfinishable()
            return batch.status().pending == 2

        until(all_released, timeout_s=5)
        assert not loop.leases_held
        go.set()
        thread.join(30)
    assert [(job.state, job.attempts) for job in batch.jobs()] == [("pending", 0)] * 2


def test_a_drain_waits_for_the_bucket_until_its_deadline(farm: Farm, family: Family) -> None:
    batch = submit(farm, 2)
    bucket = FaultyBucket(farm.bucket, lambda: True)
    with render_loop(farm, family, bucket) as loop:
        assert loop.render_all() == 2
        assert bucket.refused.wait(10)
        loop.drain(time.monotonic() + 30)
        assert batch.status().leased == 2
        closing = Thread(target=loop.close)
        closing.start()
        bucket.refuses = lambda: False
        closing.join(30)
        assert not closing.is_alive()
    assert batch.status().done == 2


def test_after_a_lost_device_the_jobs_of_the_call_run_alone_next_the_others_are_released_and_it_is_not_used_again(
    farm: Farm, family: Family
) -> None:
    batch = submit(farm, 5)
    calls = []

    def lose_the_device() -> None:
        calls.append(1)
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    hooks = RecordingHooks()
    with render_loop(farm, cast("Family", Paced(family, lose_the_device)), hooks=hooks) as loop:
        assert loop.render_all() == 0
        assert hooks.device_lost.is_set()
        assert batch.status().pending == 5
        assert loop.render_all() == 0
    assert calls == [1]
    assert {job.attempts for job in batch.jobs()} == {0}
    again: list[Lease] = []

    def all_leased() -> bool:
        again.extend(farm.ledger.lease("mini", "w", 5, lease_s=30))
        return len(again) == 5

    until(all_leased)
    companies = {lease.index: lease.company for lease in again}
    assert companies == {0: Company.ALONE, 1: Company.ALONE, 2: Company.ANY, 3: Company.ANY, 4: Company.ANY}
