"""A render loop puts images down midway, and any goes on with them: drafts, parked and paused images.

Its family is exact: an image that missed a step, or made one twice, has other bytes.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any, cast

import pytest
from tests.conftest import empty, until
from tests.support.drafts import drafts_keys
from tests.support.exact import ExactFamily
from tests.support.gate import Gate
from tests.support.rendering import FaultyBucket, render_loop

from latentfarm import Batch, Farm
from latentfarm.storage.embedded_receipt import embedded_receipt
from latentfarm.submission.request import SubmitOptions
from latentfarm_worker.models import Family
from latentfarm_worker.service import parking
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.render_loop import RenderLoop

pytestmark = pytest.mark.integration

STEPS = 8
FIELDS = {"width": 64, "height": 64, "num_inference_steps": STEPS}
#: schedulers with noise, with a history, and of second order, which makes 15 evaluations
SCHEDULERS = ("euler_a", "dpm++2m", "heun")
EVALUATIONS = {"euler_a": STEPS, "dpm++2m": STEPS, "heun": 2 * STEPS - 1}


class Cleaning(WorkerHooks):
    """The hooks of a worker, which deletes what is not needed any more."""

    def __init__(self, farm: Farm) -> None:
        super().__init__()
        self._farm = farm

    def delete_objects(self, keys: list[str]) -> None:
        self._farm.bucket.delete(keys)


class Counted(ExactFamily):
    """An exact family that counts the evaluations of each image, by the number in its prompt."""

    def __init__(self, gate: Gate | None = None) -> None:
        super().__init__()
        self.made: Counter[int] = Counter()
        #: of each call, the numbers of its images
        self.calls: list[set[int]] = []
        self._gate = gate
        self.before_predict = self._count

    def _count(self, marks: Sequence[int]) -> None:
        numbers = {mark - 1 for mark in marks if mark}
        self.calls.append(numbers)
        if self._gate is not None:
            self._gate.wait()
        self.made.update(numbers)


def rows_of(count: int = len(SCHEDULERS), **fields: Any) -> list[dict[str, Any]]:
    names = [SCHEDULERS[number % len(SCHEDULERS)] for number in range(count)]
    return [{"prompt": f"{n}", **FIELDS, "scheduler": name, **fields} for n, name in enumerate(names)]


def evaluations_of(rows: Sequence[dict[str, Any]]) -> dict[int, int]:
    return {number: EVALUATIONS[row["scheduler"]] for number, row in enumerate(rows)}


def files(batch: Batch) -> dict[int, str]:
    """Return the digest of each image's file."""
    return {line["index"]: line["sha256"] for line in batch.results() if line["state"] == "done"}


def uninterrupted(farm: Farm, rows: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Return the digests of the files of a batch that nothing interrupts, and empty the farm."""
    batch = farm.submit(rows, batch="b")
    with render_loop(farm, cast("Family", Counted())) as loop:
        loop.render_all()
        assert batch.wait(timeout_s=60).done == len(rows)
    found = files(batch)
    empty(farm)
    return found


@contextmanager
def stepping(farm: Farm, **options: Any) -> Iterator[tuple[RenderLoop, Counted, Gate, Thread]]:
    """Provide a render loop of two slots on a thread, whose steps a gate lets pass."""
    gate = Gate()
    family = Counted(gate)
    with render_loop(farm, cast("Family", family), hooks=Cleaning(farm), **options) as loop:
        thread = Thread(target=loop.render_all, daemon=True)
        thread.start()
        try:
            yield loop, family, gate, thread
        finally:
            gate.open_for_good()
            thread.join(60)


def both_run(loop: RenderLoop, gate: Gate) -> None:
    """Let steps pass until two images have made a step together, and wait in the next one."""
    until(lambda: gate.begun == 1, timeout_s=60)
    together = False
    while not together:
        together = len(loop._engine._running) == 2
        begun = gate.begun
        gate.open()
        until(lambda: gate.begun > begun, timeout_s=60)  # noqa: B023 (called at once)


def counted(loop: RenderLoop, name: str, label: str) -> float:
    return cast("float", getattr(loop.metrics.instruments, name).labels("mini", label)._value.get())


def test_a_draft_is_finished_to_the_bytes_of_an_image_that_was_never_put_down(farm: Farm) -> None:
    rows = rows_of()
    expected = uninterrupted(farm, rows)
    batch = farm.submit([{**row, "draft": 0.4} for row in rows], batch="b")
    family = Counted()
    with render_loop(farm, cast("Family", family), hooks=Cleaning(farm)) as loop:
        loop.render_all()
        status = batch.wait(timeout_s=60)
        assert (status.state, status.drafted, status.done) == ("drafted", 3, 0)
        for line in batch.results():
            draft = line["draft"]
            assert (draft["of"], draft["evaluations"]) == (
                evaluations_of(rows)[line["index"]],
                family.made[line["index"]],
            )
            body = farm.bucket.get(draft["checkpoint"]["key"])
            assert (len(body), hashlib.sha256(body).hexdigest()) == (
                draft["checkpoint"]["bytes"],
                draft["checkpoint"]["sha256"],
            )
            preview = embedded_receipt(farm.bucket.get(line["key"]), line["key"], f"b/{line['index']}")
            assert preview is not None
            assert preview["draft"] == draft
            assert "spans" not in line
        assert farm.ledger.finish("b", [0, 1, 2]) == 3
        loop.render_all()
        assert batch.wait(timeout_s=60).done == 3
        assert files(batch) == expected
    assert family.made == evaluations_of(rows)
    assert list(drafts_keys(farm, "b")) == []
    assert [len(line["spans"]) for line in batch.results()] == [2, 2, 2]
    assert (counted(loop, "checkpoints", "drafted"), counted(loop, "checkpoints", "resumed")) == (3, 3)
    assert loop.metrics.images() == {"done": 3, "drafted": 3, "failed": 0, "retried": 0, "lost": 0}


def test_a_pause_that_takes_effect_now_parks_images_which_go_on_elsewhere(farm: Farm) -> None:
    rows = rows_of(4)
    expected = uninterrupted(farm, rows)
    batch = farm.submit(rows, batch="b")
    with stepping(farm) as (loop, first, gate, thread):
        both_run(loop, gate)
        batch.pause(now=True)
        until(lambda: loop._parking._paused == {"b"}, timeout_s=60)
        gate.open_for_good()
        thread.join(60)
        until(lambda: not loop.backlog, timeout_s=60)
        status = batch.status()
        assert (status.pending, status.leased) == (4, 0)
        assert 2 <= counted(loop, "checkpoints", "parked") < 4
    batch.resume()
    second = Counted()
    with render_loop(farm, cast("Family", second), hooks=Cleaning(farm)) as loop:
        loop.render_all()
        assert batch.wait(timeout_s=60).done == 4
        assert counted(loop, "evaluations", "saved") == first.made.total()
    assert files(batch) == expected
    # no step is made twice
    assert first.made + second.made == evaluations_of(rows)
    assert {job.attempts for job in batch.jobs()} == {1}
    assert list(drafts_keys(farm, "b")) == []


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("paused_s", [60.0, 0.0])
def test_an_urgent_job_begins_within_two_steps_beside_a_full_batch_whose_images_stay_the_same(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, side: int, paused_s: float
) -> None:
    monkeypatch.setattr(parking, "PAUSED_S", paused_s)
    rows = rows_of(4)
    expected = uninterrupted(farm, rows)
    batch = farm.submit(rows, batch="b")
    with stepping(farm) as (loop, family, gate, thread):
        both_run(loop, gate)
        row = {"prompt": "9", **FIELDS, "width": side, "scheduler": "euler"}
        urgent = farm.submit([row], batch="u", options=SubmitOptions(preempt=True))
        until(lambda: bool(loop._supply.urgent._ready), timeout_s=60)
        begun = gate.begun
        # the step that ran as it came, and its own
        gate.open(2)
        until(lambda: gate.begun == begun + 2, timeout_s=60)
        assert any(9 in numbers for numbers in family.calls[begun : begun + 2])
        gate.open_for_good()
        assert urgent.wait(timeout_s=60).done == 1
        assert batch.wait(timeout_s=60).done == 4
        thread.join(60)
        assert (counted(loop, "checkpoints", "parked") > 0) == (not paused_s)
    assert files(batch) == expected
    assert family.made == {**evaluations_of(rows), 9: STEPS}
    assert {job.attempts for job in batch.jobs()} == {1}


@pytest.mark.parametrize("event", ["missing", "damaged", "mismatched"])
def test_without_a_usable_checkpoint_a_job_to_be_finished_begins_again(farm: Farm, event: str) -> None:
    rows = rows_of(2)
    expected = uninterrupted(farm, rows)
    batch = farm.submit([{**row, "draft": 0.5} for row in rows], batch="b")
    with render_loop(farm, cast("Family", Counted()), hooks=Cleaning(farm)) as loop:
        loop.render_all()
        assert batch.wait(timeout_s=60).drafted == 2
        first, second = (line["draft"]["checkpoint"]["key"] for line in batch.results())
        body = farm.bucket.get(first)
        match event:
            case "missing":
                farm.bucket.delete([first])
            case "damaged":
                farm.bucket.put(first, body[:-1] + bytes([body[-1] ^ 1]))
            case _:
                farm.bucket.put(first, farm.bucket.get(second))
        farm.ledger.finish("b", [0, 1])
        loop.render_all()
        assert batch.wait(timeout_s=60).done == 2
    assert files(batch) == expected
    assert (counted(loop, "checkpoints", event), counted(loop, "checkpoints", "resumed")) == (1, 1)


def test_what_the_bucket_does_not_take_until_the_deadline_is_released_and_begins_again(farm: Farm) -> None:
    batch = farm.submit(rows_of(2), batch="b")
    bucket = FaultyBucket(farm.bucket, lambda: True, folder="drafts")
    with stepping(farm, bucket=bucket) as (loop, _, gate, thread):
        both_run(loop, gate)
        loop.drain(time.monotonic() + 1)
        gate.open_for_good()
        thread.join(60)
        assert bucket.refused.wait(60)
        assert batch.status().leased == 2
        loop.close()
    status = batch.status()
    assert (status.pending, status.leased) == (2, 0)
    leases = farm.ledger.lease("mini", "w", 2, lease_s=30)
    assert [(lease.attempts, lease.checkpoint) for lease in leases] == [(0, 0)] * 2
    assert counted(loop, "evaluations", "lost") > 0
