"""Interactive jobs in a render loop: they come first, are committed at once, and report what becomes of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import pytest
from PIL import Image
from tests.conftest import until
from tests.support.gate import Gate
from tests.support.rendering import SMALL, Paced, render_loop, submit

from latentfarm import Batch, Farm
from latentfarm.batch_kind import BatchKind
from latentfarm.ledger import INTERACTIVE_PRIORITY
from latentfarm.ledger.live_reports import LiveReport
from latentfarm.submission.request import SubmitOptions
from latentfarm_worker.models import Family
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.render_loop import RenderLoop

pytestmark = pytest.mark.integration


def submit_interactive(farm: Farm, name: str = "interactive-1", *, images: int = 1, **fields: Any) -> Batch:
    """Submit an interactive batch of small jobs."""
    options = SubmitOptions(kind=BatchKind.INTERACTIVE, priority=INTERACTIVE_PRIORITY, keep_s=3600)
    rows = [{"prompt": f"i{n}", **SMALL} for n in range(images)]
    return farm.submit(rows, batch=name, options=options, **fields)


class Called(WorkerHooks):
    """The hooks of a worker, which renders as soon as it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.urgent = Event()

    def on_urgent(self) -> None:
        self.urgent.set()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def loop(farm: Farm, family: Family, gate: Gate) -> Iterator[RenderLoop]:
    """A render loop of two slots that renders ten jobs of a batch, and waits in its second step."""
    with render_loop(farm, Paced(family, gate.wait), slots=2) as loop:
        submit(farm, 10, num_inference_steps=8)
        thread = Thread(target=loop.render_all, daemon=True)
        thread.start()
        gate.open()
        until(lambda: gate.begun == 2, timeout_s=60)
        yield loop
        loop.stop()
        gate.open_for_good()
        thread.join(60)


def test_an_idle_worker_hears_of_a_job_without_a_doorbell_and_reports_each_step(farm: Farm, family: Family) -> None:
    hooks = Called()
    with farm.ledger.live_reports() as subscription, render_loop(farm, family, hooks=hooks) as loop:
        subscription.wait(0.01)
        until(lambda: farm.ledger.redis.pubsub_numsub("{lf}:urgent")[0][1] == 1, timeout_s=60)
        batch = submit_interactive(farm, partial_images=1, num_inference_steps=3)
        assert hooks.urgent.wait(60)
        # it is leased already, by the thread that heard of it
        until(lambda: batch.status().leased == 1, timeout_s=60)
        assert loop.render_all() == 1
        assert batch.wait(timeout_s=60).done == 1
        reports: list[LiveReport] = []
        while not any(each.preview for each in reports):
            reports += subscription.wait(60)
    [preview] = [each for each in reports if each.preview]
    assert (preview.job, preview.number, preview.step, preview.steps) == ("interactive-1/0", 0, 2, 3)
    assert Image.open(io.BytesIO(farm.bucket.get(preview.preview))).size == (64, 64)
    assert all((each.job, each.steps) == ("interactive-1/0", 3) for each in reports)
    [receipt] = batch.results()
    # start, i, 0, end; and those of the empty negative prompt
    assert receipt["tokens"] == 4 + 2
    assert "partial_images" not in json.dumps(receipt)


def test_beside_a_full_batch_it_is_made_first_and_committed_at_once(
    farm: Farm, loop: RenderLoop, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a commit of other images would wait
    monkeypatch.setattr("latentfarm_worker.service.commits._COMMIT_EARLY_S", -60.0)
    before = {lease.name for lease in loop._leases.held()}
    assert not loop._engine.free
    batch = submit_interactive(farm)
    until(lambda: bool(loop._supply.urgent._ready), timeout_s=60)
    # the step that ran as it came, and its own
    gate.open(1 + SMALL["num_inference_steps"])  # type: ignore[operator]
    assert batch.wait(timeout_s=60).done == 1
    # no job was dropped for it
    assert before <= {lease.name for lease in loop._leases.held()}
    assert farm.batch("b").status().done == 0


def test_a_cancelled_interactive_job_gives_its_slot_back_at_the_next_step(
    farm: Farm, loop: RenderLoop, gate: Gate
) -> None:
    batch = submit_interactive(farm, num_inference_steps=8)
    until(lambda: bool(loop._supply.urgent._ready), timeout_s=60)
    gate.open()
    until(lambda: len(loop._engine.interactive_progress()) == 1, timeout_s=60)
    batch.cancel()
    until(lambda: not any(lease.batch == batch.name for lease in loop._leases.held()), timeout_s=60)
    begun = gate.begun
    gate.open()
    until(lambda: gate.begun > begun, timeout_s=60)
    assert loop._engine.interactive_progress() == []
    assert not any(image.paused for image in loop._engine._running)


def test_more_interactive_jobs_than_slots_are_leased_one_after_the_other(farm: Farm, family: Family) -> None:
    with render_loop(farm, family, slots=2) as loop:
        batch = submit_interactive(farm, images=5)
        assert loop.render_all() == 5
        assert batch.wait(timeout_s=60).done == 5
