"""A job that breaks the engine fails alone; a device that breaks every job, or a broken loop, charges none."""

from __future__ import annotations

from threading import Event
from typing import Any, cast

import pytest
import torch
from tests.conftest import until
from tests.support.engines import BreakingFamily
from tests.support.rendering import SMALL, render_loop, submit

from latentfarm import Batch, Farm
from latentfarm.ledger import Company, Lease
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import Family
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.prefetcher import Prefetcher
from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.service.uploader import Uploader
from latentfarm_worker.supervise.at_risk import AtRisk

pytestmark = pytest.mark.integration


class RecordingHooks(WorkerHooks):
    """Hooks that record a lost device."""

    def __init__(self) -> None:
        super().__init__()
        self.device_lost = Event()

    def on_device_lost(self) -> None:
        self.device_lost.set()


def render(loop: RenderLoop, batch: Batch) -> None:
    """Render until the batch is complete; jobs that are to run again come later."""
    while not batch.status().complete:
        loop.render_all()
        loop.wait_for_uploads(10)


def ends(batch: Batch) -> list[tuple[str, int]]:
    return [(str(job.state), job.attempts) for job in batch.jobs()]


def of(family: BreakingFamily) -> Family:
    return cast("Family", family)


@pytest.mark.parametrize("call", ["predict", "encode"])
def test_a_job_that_always_breaks_a_call_fails_alone_with_its_own_message(farm: Farm, call: str) -> None:
    batch = submit(farm, 8)
    bad: dict[str, Any] = {call: [5]}
    with render_loop(farm, of(BreakingFamily(**bad)), slots=8) as loop:
        render(loop, batch)
    assert ends(batch) == [("done", 1)] * 5 + [("failed", 3)] + [("done", 1)] * 2
    error = batch.job(5).error
    assert error is not None
    assert (error["code"], error["message"]) == ("engine_error", f"RuntimeError: {call} of job 5 broke")


def test_a_step_that_breaks_once_charges_no_job(farm: Farm) -> None:
    batch, family, broken = submit(farm, 8), BreakingFamily(), iter([True])

    def break_once() -> None:
        if next(broken, False):
            raise ValueError("a passing fault")

    family.before_predict = break_once
    with render_loop(farm, of(family), slots=8) as loop:
        render(loop, batch)
    assert ends(batch) == [("done", 1)] * 8


def test_a_device_that_renders_nothing_charges_no_job_and_ends_the_process(farm: Farm) -> None:
    batch, family, hooks = submit(farm, 4), BreakingFamily(), RecordingHooks()

    def break_always() -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    family.before_predict = break_always
    with render_loop(farm, of(family), slots=4, hooks=hooks) as loop:
        loop.render_all()
        assert hooks.device_lost.is_set()
        assert not loop.leases_held
        assert hooks.state.at_risk() is None
        assert loop.render_all() == 0
    assert ends(batch) == [("pending", 0)] * 4


def test_the_jobs_of_each_call_are_recorded_before_it(farm: Farm) -> None:
    batch, family, hooks = submit(farm, 3), BreakingFamily(), WorkerHooks()
    seen: list[AtRisk | None] = []
    family.before_predict = lambda: seen.append(hooks.state.at_risk())
    with render_loop(farm, of(family), slots=2, hooks=hooks) as loop:
        render(loop, batch)
    names = {tuple(name for name, _ in each.leases): each.lone for each in seen if each is not None}
    assert names == {("b/0", "b/1"): False, ("b/2",): True}
    assert all(epoch > 0 for each in seen if each is not None for _, epoch in each.leases)


# -- jobs that had trouble -----------------------------------------------------------------------------------


def test_jobs_that_were_charged_run_alone_and_one_after_the_other(farm: Farm) -> None:
    batch, family = submit(farm, 8), BreakingFamily()
    leases = farm.ledger.lease("mini", "other", 8, lease_s=30)
    for lease in leases[:3]:
        farm.ledger.fail(lease, {"code": "engine_error", "message": "m"}, retry=True, delay_s=0)
    farm.ledger.release(leases[3:])
    with render_loop(farm, of(family), slots=8) as loop:
        calls: list[set[str]] = []
        here: list[int] = []

        def record() -> None:
            calls.append({lease.name for lease in cast("list[Lease]", loop._engine.at_risk())})
            here.append(sum(lease.company is Company.ALONE for lease in loop._leases.held()))

        family.before_predict = record
        render(loop, batch)
    assert ends(batch) == [("done", 2)] * 3 + [("done", 1)] * 5
    alone = {"b/0", "b/1", "b/2"}
    assert {name for call in calls if len(call) == 1 for name in call} >= alone
    assert all(len(call) == 1 or not call & alone for call in calls)
    # a job of which the image is stored is held too
    assert max(here) <= 2


def test_a_job_that_loses_the_device_is_poison_at_the_third_time_and_its_neighbours_are_done_uncharged(
    farm: Farm,
) -> None:
    batch = submit(farm, 8)
    lost = []
    calls: list[list[str]] = []
    while not batch.status().complete:
        family, hooks = BreakingFamily(predict=[5], error=illegal_access), RecordingHooks()
        with render_loop(farm, of(family), slots=8, hooks=hooks) as loop:
            family.before_predict = lambda loop=loop: calls.append(  # type: ignore[misc]
                [lease.name for lease in cast("list[Lease]", loop._engine.at_risk())]
            )
            while not (batch.status().complete or hooks.device_lost.is_set()):
                loop.render_all()
                loop.wait_for_uploads(10)
        if hooks.device_lost.is_set():
            lost.append(calls[-1])
    assert ends(batch)[:5] + ends(batch)[6:] == [("done", 1)] * 7
    error = batch.job(5).error
    assert error is not None
    assert error["code"] == "poison"
    assert len(lost) == 3
    assert lost[1:] == [["b/5"]] * 2


def illegal_access(message: str) -> Exception:
    return torch.AcceleratorError(f"CUDA error: an illegal memory access was encountered ({message})")


# -- errors that nothing foresaw -------------------------------------------------------------------------------


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Exception) -> list[Exception]:
    """Let the first call of a method raise; return a list that then has the error."""
    original = getattr(owner, name)
    raised: list[Exception] = []

    def method(*args: Any, **options: Any) -> Any:
        if not raised:
            raised.append(error)
            raise error
        return original(*args, **options)

    monkeypatch.setattr(owner, name, method)
    return raised


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Engine, "admit"),
        (Engine, "isolate"),
        (Engine, "remaining"),
        (Engine, "free_within"),
        (Prefetcher, "request"),
        (Prefetcher, "take"),
        (Uploader, "store"),
    ],
)
def test_an_unexpected_error_of_any_call_holds_no_lease_and_the_loop_goes_on(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    batch = submit(farm, 4)
    raised = fail_once(monkeypatch, owner, name, KeyError("unforeseen"))
    bad = [3] if name == "isolate" else []
    with render_loop(farm, of(BreakingFamily(predict=bad)), slots=4) as loop:
        render(loop, batch)
        assert raised
        until(lambda: not loop.leases_held)
        counted = loop.metrics.registry.get_sample_value(
            "latentfarm_thread_errors_total", {"model": "mini", "thread": "engine"}
        )
        assert counted == 1
    assert {state for state, _ in ends(batch)[:3]} == {"done"}
    # an image that could not be passed on is charged, because it might never be
    charged = name in {"take", "store"} and owner is not Prefetcher
    assert sorted(attempts for _, attempts in ends(batch)[:3]) == [1, 1, 2 if charged else 1]


def test_an_unexpected_error_of_a_cancellation_holds_no_lease(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, family = submit(farm, 2, num_inference_steps=50), BreakingFamily()
    steps = iter(range(1000))
    raised = fail_once(monkeypatch, Engine, "cancel", KeyError("unforeseen"))
    with render_loop(farm, of(family), slots=4, lease_ttl_s=1) as loop:

        def cancel_at_the_third() -> None:
            if next(steps) == 2:
                batch.cancel()
                while loop.leases_held:
                    Event().wait(0.01)

        family.before_predict = cancel_at_the_third
        loop.render_all()
        assert raised
        assert not loop.leases_held
        assert not loop._engine.busy
        later = farm.submit([{"prompt": "p0", **SMALL}], batch="later")
        render(loop, later)
    assert ends(later) == [("done", 1)]


def test_an_error_that_comes_again_and_again_makes_pauses_grow_and_the_worker_not_ready(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, pauses = submit(farm, 2), []

    def fail_always(*_: Any) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(Prefetcher, "take", fail_always)
    with render_loop(farm, of(BreakingFamily())) as loop:

        def record(seconds: float) -> bool:
            pauses.append(seconds)
            if len(pauses) == 9:
                loop.stop()
            return False

        monkeypatch.setattr(loop._stopping, "wait", record)
        loop.render_all()
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.2, 5.0)
    assert loop.threads.problem() == "the engine thread fails: KeyError: 'unforeseen'"
    assert ends(batch) == [("pending", 0)] * 2


@pytest.mark.parametrize("name", ["step", "admit"])
def test_a_lost_device_is_noticed_in_any_call(farm: Farm, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    submit(farm, 2)
    hooks = RecordingHooks()
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    fail_once(monkeypatch, Engine, name, error)
    with render_loop(farm, of(BreakingFamily()), hooks=hooks) as loop:
        loop.render_all()
        assert hooks.device_lost.is_set()
        assert not loop.leases_held
