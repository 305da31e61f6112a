"""Reports of slots in a render loop: when they come, and that nothing depends on them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conftest import until
from tests.support.engines import single_thread
from tests.support.rendering import SMALL, Paced, render_loop

from latentfarm import Batch, Farm
from latentfarm.ledger import SlotReports, SlotsReport
from latentfarm.storage.keys import images_prefix
from latentfarm_worker.engine.device_batch import DeviceBatch
from latentfarm_worker.models import Family
from latentfarm_worker.service import slot_reporter
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.render_loop import RenderLoop

pytestmark = pytest.mark.integration

ROWS = [{"prompt": f"p{n}", **SMALL, "num_inference_steps": 4, "seed": n, "scheduler": "euler_a"} for n in range(4)]


class Steps:
    """Counts steps, and can hold the engine in one."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_go = Event()
        self.may_go.set()

    def wait(self) -> None:
        """Wait for the next step, on the engine's thread."""
        self.begun += 1
        assert self.may_go.wait(60)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    # with tiny convolutions, a second thread costs more than it gains
    with single_thread():
        yield


@pytest.fixture
def reports(farm: Farm) -> Iterator[SlotReports]:
    with farm.ledger.slot_reports(["worker-a"]) as found:
        assert found.wait(0) is None
        yield found


def watch(farm: Farm, loop: RenderLoop) -> None:
    """Signal to the worker that it is watched, once it listens."""
    until(lambda: farm.ledger.redis.pubsub_numsub("{lf}:watched:worker-a")[0][1] == 1, timeout_s=60)
    farm.ledger.watch_workers(["worker-a"])
    until(lambda: loop._slots.watched, timeout_s=60)


def all_reports(reports: SlotReports) -> list[SlotsReport]:
    found = []
    while (report := reports.wait(0.5)) is not None:
        found.append(report)
    return found


def pixels_of(farm: Farm, batch: Batch) -> list[bytes]:
    """Return the pixels of all images of a batch."""
    bodies = [farm.bucket.get(key) for key in sorted(farm.bucket.keys(images_prefix(batch.name, 0)))]
    return [np.asarray(Image.open(io.BytesIO(body))).tobytes() for body in bodies]


def test_images_have_the_same_bytes_with_a_report_of_each_step_and_without(
    farm: Farm, family: Family, reports: SlotReports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_reporter, "_INTERVAL_S", 0.0)
    with render_loop(farm, family) as loop:
        plain = farm.submit(ROWS, batch="plain")
        loop.render_all()
        loop.wait_for_uploads(60)
        assert all_reports(reports) == []
        watch(farm, loop)
        watched = farm.submit(ROWS, batch="watched")
        loop.render_all()
        loop.wait_for_uploads(60)
        found = [slot for report in all_reports(reports) for slot in report.slots]
    assert {slot.job for slot in found} == {f"watched/{n}" for n in range(4)}
    assert all(slot.preview for slot in found)
    assert pixels_of(farm, watched) == pixels_of(farm, plain)
    assert len({*pixels_of(farm, plain)}) == 4


def test_a_signal_holds_for_its_time_only(
    farm: Farm, family: Family, reports: SlotReports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_reporter, "WATCHED_S", 0.5)
    monkeypatch.setattr(slot_reporter, "_INTERVAL_S", 0.0)
    steps = Steps()
    with render_loop(farm, Paced(family, steps.wait)) as loop:
        farm.submit([{**row, "num_inference_steps": 400} for row in ROWS], batch="b")
        thread = Thread(target=loop.render_all, daemon=True)
        thread.start()
        until(lambda: steps.begun > 3, timeout_s=60)
        farm.ledger.watch_workers(["worker-b", "worker"])
        watch(farm, loop)
        report = reports.wait(10)
        assert report is not None
        assert len(report.slots) == 2
        until(lambda: not loop._slots.watched, timeout_s=60)
        all_reports(reports)
        begun = steps.begun
        until(lambda: steps.begun > begun + 10, timeout_s=60)
        assert reports.wait(0) is None
        loop.stop()
        thread.join(60)


@pytest.mark.parametrize("error", [RuntimeError("no"), MemoryError()])
def test_images_are_made_also_if_the_slots_cannot_be_read(
    farm: Farm, family: Family, reports: SlotReports, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(slot_reporter, "_INTERVAL_S", 0.0)
    monkeypatch.setattr(DeviceBatch, "estimate", raising(error))
    with render_loop(farm, family) as loop:
        watch(farm, loop)
        batch = farm.submit(ROWS, batch="b")
        loop.render_all()
        loop.wait_for_uploads(60)
        assert [(job.state, job.attempts) for job in batch.jobs()] == [("done", 1)] * 4
        # those without images
        assert all(report.slots == () for report in all_reports(reports))
        assert loop.threads.problem() == ""


def test_a_device_that_is_lost_while_the_slots_are_read_is_lost_as_in_a_step(
    farm: Farm, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(WorkerHooks):
        called = False

        def on_device_lost(self) -> None:
            self.called = True

    hooks = Lost()
    monkeypatch.setattr(DeviceBatch, "estimate", raising(RuntimeError("CUDA error: an illegal memory access")))
    with render_loop(farm, family, hooks=hooks) as loop:
        watch(farm, loop)
        batch = farm.submit(ROWS, batch="b")
        loop.render_all()
        assert hooks.called
        until(lambda: loop.leases_held == 0, timeout_s=60)
    assert batch.status().pending == 4


def raising(error: Exception) -> Callable[..., Any]:
    def method(*_: Any) -> Any:
        raise error

    return method
