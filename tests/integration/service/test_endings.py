"""A worker's loop that is drained, stopped or loses its device: what fits is finished, the rest goes back uncharged."""

from __future__ import annotations

import time
from threading import Event, Semaphore, Thread
from typing import cast

import pytest
import torch
from tests.conftest import until
from tests.support.rendering import SMALL, FaultyBucket, Paced, renderer, submit

from latentfarm import Farm
from latentfarm_worker.models import Family
from latentfarm_worker.service.render_loop import WorkerHooks

pytestmark = pytest.mark.integration


class Told(WorkerHooks):
    """A host that notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.woken, self.was_broken = Event(), Event()

    def wake_others(self) -> None:
        self.woken.set()

    def broken(self) -> None:
        self.was_broken.set()


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
