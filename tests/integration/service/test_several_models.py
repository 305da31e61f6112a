"""A worker of two models with the real servers: turns, swaps, heartbeats, and the images of single models."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Semaphore, Thread
from typing import Any, cast

import pytest
from tests.conftest import empty, until
from tests.support.engines import single_thread
from tests.support.rendering import SMALL, Paced
from tests.support.sibling_models import make_siblings

from latentfarm import Batch, Farm, doorbell
from latentfarm.batch_kind import BatchKind
from latentfarm.errors import ModelError
from latentfarm.ledger import INTERACTIVE_PRIORITY
from latentfarm.settings import Settings
from latentfarm.submission.request import SubmitOptions
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import Family
from latentfarm_worker.service import worker as worker_module
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.metrics import Metrics
from latentfarm_worker.service.render_loop import RenderLoop
from latentfarm_worker.service.render_loops import RenderLoops
from latentfarm_worker.service.threads import Threads
from latentfarm_worker.service.turns import Turns
from latentfarm_worker.service.worker import Worker
from latentfarm_worker.supervise.shared_state import SharedState

pytestmark = pytest.mark.integration

MODELS = ("first", "second")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread: with tiny convolutions, a second one costs more than it gains."""
    with single_thread():
        yield


@pytest.fixture(scope="module")
def siblings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_siblings(tmp_path_factory.mktemp("siblings"))


def submit(farm: Farm, model: str, count: int, **fields: Any) -> Batch:
    rows = [{"prompt": f"p{n}", **SMALL, **fields} for n in range(count)]
    return farm.submit(rows, batch=f"of-{model}", model=model)


# -- turns of two render loops -------------------------------------------------------------------------------


class Gate:
    """Lets the engines make one step for each ``open``, and records which model made it."""

    def __init__(self) -> None:
        self._steps, self._free = Semaphore(0), Event()
        self.steps: list[str] = []

    def before_step(self, model: str) -> None:
        self.steps.append(model)
        if not self._free.is_set():
            assert self._steps.acquire(timeout=60)

    def open(self) -> None:
        self._steps.release()

    def open_for_good(self) -> None:
        self._free.set()
        self._steps.release(1_000)


class Urgent(WorkerHooks):
    """The hooks of one model of a worker."""

    def __init__(self, turns: Turns, model: str) -> None:
        super().__init__()
        self._turns, self._model = turns, model

    def on_urgent(self) -> None:
        self._turns.on_urgent(self._model)


class TwoLoops:
    """A worker's render loops of two models with one slot each, whose steps a gate lets pass."""

    def __init__(self, farm: Farm, family: Family) -> None:
        self.gate = Gate()
        self.now = 0.0
        self.turns = Turns(MODELS, turn_s=60, clock=lambda: self.now)
        metrics = Metrics(MODELS[0])
        threads = Threads(metrics)
        self.by_model = {
            model: RenderLoop(
                ledger=farm.ledger,
                bucket=farm.bucket,
                engine=Engine(self._paced(family, model), slots=1),
                model=model,
                worker=f"worker-a.{model}",
                lease_ttl_s=30,
                hooks=Urgent(self.turns, model),
                metrics=Metrics(model, instruments=metrics.instruments),
                threads=threads,
            )
            for model in MODELS
        }
        self.loops = RenderLoops(self.by_model, self.turns)
        self.ended: list[int] = []
        self.thread = Thread(target=lambda: self.ended.append(self.loops.render_all()), daemon=True)

    def _paced(self, family: Family, model: str) -> Family:
        return cast("Family", Paced(family, lambda: self.gate.before_step(model)))

    def finish(self) -> list[str]:
        """Let everything pass; return which model made each step."""
        self.gate.open_for_good()
        self.thread.join(120)
        assert not self.thread.is_alive()
        return self.gate.steps


@pytest.fixture
def two(farm: Farm, family: Family) -> Iterator[TwoLoops]:
    two = TwoLoops(farm, family)
    yield two
    two.loops.stop()
    two.gate.open_for_good()
    if two.thread.ident:
        two.thread.join(60)
    two.loops.close()


def changes(steps: Sequence[str]) -> list[str]:
    """Return the models in their order, each once for consecutive steps."""
    return [model for at, model in enumerate(steps) if at == 0 or steps[at - 1] != model]


def test_the_first_model_renders_all_its_jobs_before_the_second(farm: Farm, two: TwoLoops) -> None:
    batches = [submit(farm, model, 3) for model in MODELS]
    two.thread.start()
    steps = two.finish()
    assert two.ended == [6]
    assert changes(steps) == ["first", "second"]
    assert all(batch.wait(timeout_s=60).done == 3 for batch in batches)


def test_a_turn_that_is_over_ends_with_its_running_image_and_releases_the_jobs_ahead_uncharged(
    farm: Farm, two: TwoLoops
) -> None:
    batches = [submit(farm, model, 4) for model in MODELS]
    two.thread.start()
    until(lambda: len(two.gate.steps) == 1, timeout_s=60)
    # as the heartbeat of the second model reports
    two.turns.on_pending("second", 4)
    two.now = 60.0
    two.gate.open()
    until(lambda: len(two.gate.steps) == 2, timeout_s=60)
    until(lambda: two.by_model["first"].leases_held == 1, timeout_s=60)
    steps = two.finish()
    assert steps[:6] == ["first"] * SMALL["num_inference_steps"] + ["second"] * 3  # type: ignore[operator]
    assert changes(steps) == ["first", "second", "first"]
    for batch in batches:
        assert batch.wait(timeout_s=60).done == 4
        assert {line["attempts"] for line in batch.results()} == {1}


def test_an_interactive_job_of_the_other_model_is_rendered_between_two_steps(farm: Farm, two: TwoLoops) -> None:
    batch = submit(farm, "first", 2, num_inference_steps=6)
    two.thread.start()
    until(lambda: len(two.gate.steps) == 1, timeout_s=60)
    options = SubmitOptions(kind=BatchKind.INTERACTIVE, priority=INTERACTIVE_PRIORITY, keep_s=3600)
    client = farm.submit([{"prompt": "now", **SMALL}], batch="interactive-1", model="second", options=options)
    until(lambda: two.turns.is_interrupted(cast("Any", two.turns._open)), timeout_s=60)
    for _ in range(1 + 3):
        two.gate.open()
    assert client.wait(timeout_s=60).done == 1
    # the image of the first model has made one of its steps, and is still there
    assert two.gate.steps[:4] == ["first", "second", "second", "second"]
    assert two.by_model["first"].unfinished
    steps = two.finish()
    assert (len(steps), changes(steps)) == (2 * 6 + 3, ["first", "second", "first"])
    assert batch.wait(timeout_s=60).done == 2
    assert {line["attempts"] for line in batch.results()} == {1}


def test_images_of_a_turn_that_stays_interrupted_are_parked_so_that_other_workers_go_on(
    farm: Farm, two: TwoLoops
) -> None:
    batch = submit(farm, "first", 2, num_inference_steps=6)
    two.thread.start()
    two.gate.open()
    until(lambda: len(two.gate.steps) == 2, timeout_s=60)
    client = farm.submit([{"prompt": "now", **SMALL}], batch="u", model="second", options=SubmitOptions(preempt=True))
    until(lambda: two.turns.is_interrupted(cast("Any", two.turns._open)), timeout_s=60)
    two.gate.open()
    until(lambda: len(two.gate.steps) == 3, timeout_s=60)
    assert batch.status().leased > 0
    two.now += 10
    two.gate.open()
    until(lambda: batch.status().leased == 0, timeout_s=60)
    [lease] = [each for each in farm.ledger.lease("first", "w", 2, lease_s=30) if each.checkpoint]
    farm.ledger.release([lease])
    steps = two.finish()
    assert client.wait(timeout_s=60).done == 1
    # its two steps are not made again; the other job is leased by the test
    assert (len(steps), steps[:5]) == (6 + 3, ["first", "first", "second", "second", "second"])
    assert farm.ledger.batch(batch.name).done == 1


def test_a_model_without_a_turn_leases_no_interactive_job(farm: Farm, two: TwoLoops) -> None:
    options = SubmitOptions(kind=BatchKind.INTERACTIVE, priority=INTERACTIVE_PRIORITY, keep_s=3600)
    client = farm.submit([{"prompt": "now", **SMALL}], batch="interactive-1", model="second", options=options)
    two.by_model["second"]._on_urgent()
    assert client.status().leased == 0
    two.thread.start()
    steps = two.finish()
    assert (client.wait(timeout_s=60).done, changes(steps)) == (1, ["second"])


def test_a_drain_parks_the_images_of_an_interrupted_turn(farm: Farm, two: TwoLoops) -> None:
    batch = submit(farm, "first", 3)
    two.thread.start()
    # after one step, its time is known
    two.gate.open()
    until(lambda: len(two.gate.steps) == 2, timeout_s=60)
    two.turns.on_urgent("second")
    two.loops.drain(time.monotonic() + 600)
    two.finish()
    two.loops.close()
    status = batch.status()
    assert (status.done, status.leased, status.pending) == (0, 0, 3)
    leases = farm.ledger.lease("first", "w", 3, lease_s=30)
    found = {(lease.index, lease.checkpoint > 0, lease.attempts) for lease in leases}
    assert found == {(0, True, 0), (1, False, 0), (2, False, 0)}


def test_a_lost_device_releases_the_jobs_of_every_model(farm: Farm, two: TwoLoops) -> None:
    batch = submit(farm, "first", 3)
    two.thread.start()
    until(lambda: len(two.gate.steps) == 1, timeout_s=60)
    two.loops.abandon_device()
    until(lambda: batch.status().leased == 0, timeout_s=60)
    two.finish()
    assert batch.status().pending == 3


# -- a whole worker ------------------------------------------------------------------------------------------


@contextmanager
def serving(settings: Settings, **chosen: Any) -> Iterator[Worker]:
    """Provide a worker in this process."""
    update = {"slots": 2, "micro_batch": 4, "housekeeping_interval_s": 0.2, **chosen}
    settings = settings.model_copy(update=update)
    app = doorbell.make_app(settings.redis_url, model="first")
    worker = Worker(settings, app, state=SharedState(), name="worker-a", supervised=True)
    try:
        yield worker
    finally:
        worker.close()


def render(worker: Worker, batches: Sequence[Batch]) -> None:
    """Render as the doorbell's task does, until the batches are complete."""
    deadline = time.monotonic() + 120
    while not all(batch.status().complete for batch in batches):
        worker.render_loops.render_all()
        assert time.monotonic() < deadline


def digests(batches: Sequence[Batch]) -> dict[str, str]:
    return {f"{batch.name}/{line['index']}": line["sha256"] for batch in batches for line in batch.results()}


def test_two_models_that_do_not_fit_together_give_the_files_of_workers_with_one(
    farm: Farm, settings: Settings, siblings: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    models = f"first={siblings[0]}; second={siblings[1]}"
    with serving(settings, models=models, model_memory_gb=1e-9) as worker:
        batches = [submit(farm, model, 3) for model in MODELS]
        render(worker, batches)
        # the first comes back, where a doorbell would ring
        again = farm.submit([{"prompt": "again", **SMALL}], batch="again", model="first")
        render(worker, [again])
        together = digests([*batches, again])
    assert "second/vae has the bytes of" in caplog.text or "first/vae has the bytes of" in caplog.text
    assert caplog.text.count("is on the device after") == 2
    assert "worker worker-a serves first, second on cpu, 2, 2 slots" in caplog.text
    empty(farm)
    alone: dict[str, str] = {}
    for model, folder in zip(MODELS, siblings, strict=True):
        with serving(settings, model=model, model_source=str(folder)) as worker:
            batches = [submit(farm, model, 3)]
            if model == "first":
                batches.append(farm.submit([{"prompt": "again", **SMALL}], batch="again", model="first"))
            render(worker, batches)
            alone |= digests(batches)
    assert together == alone


def test_it_reports_under_each_model_and_a_drain_of_one_ends_it(
    farm: Farm, settings: Settings, siblings: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drained = Event()
    monkeypatch.setattr(worker_module, "_terminate", drained.set)
    models = f"first={siblings[0]}; second={siblings[1]}"
    with serving(settings, models=models) as worker:
        until(lambda: len(farm.ledger.worker_records()) == 2, timeout_s=60)
        found = {(record.model, record.name, record.slots) for record in farm.ledger.worker_records()}
        assert found == {("first", "worker-a.first", 2), ("second", "worker-a.second", 2)}
        until(lambda: set(farm.ledger.all_model_facts()) == set(MODELS), timeout_s=60)
        samples = {
            (sample.name, sample.labels.get("model"))
            for metric in worker._metrics.registry.collect()
            for sample in metric.samples
        }
        assert {("latentfarm_slots", model) for model in MODELS} <= samples
        # a client's job wakes the worker without a doorbell, whichever of its models it is for
        options = SubmitOptions(kind=BatchKind.INTERACTIVE, priority=INTERACTIVE_PRIORITY, keep_s=3600)
        client = farm.submit([{"prompt": "now", **SMALL}], batch="interactive-1", model="second", options=options)
        assert client.wait(timeout_s=60).done == 1
        [line] = client.results()
        assert line["worker"] == "worker-a.second"
        farm.ledger.request_drain("worker-a.second")
        assert drained.wait(60)
    assert farm.ledger.worker_records() == []


def test_a_model_that_cannot_be_loaded_is_an_error_at_the_start(
    settings: Settings, siblings: tuple[Path, Path], tmp_path: Path
) -> None:
    models = f"first={siblings[0]}; second={tmp_path}"
    with pytest.raises(ModelError, match=r"model_index\.json"), serving(settings, models=models):
        pass
