"""Images that begin alike share their beginnings, and have the bytes that they have alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import make, pixels
from tests.support.exact import ExactFamily
from tests.support.input_images import Inputs, paint, paint_mask
from tests.support.loras import ATTENTION, changes, write_peft
from tests.support.refined import make_refinable, refined
from tests.support.tiny import SD_SCHEDULE, make_tiny
from tests.support.tiny.controlnets import make_controlnet

from latentfarm.job import Job
from latentfarm_worker.adapters.catalogue import open_catalogue
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.engine.job_inputs import NO_INPUTS, JobInputs
from latentfarm_worker.input_images.reader import InputReader
from latentfarm_worker.models import Family, load_family

pytestmark = pytest.mark.unit

#: with those of several steps, of second order, and with noise
SCHEDULERS = ("euler", "euler_a", "dpm++2m", "dpm++3m-sde", "heun", "kdpm2_a", "unipc", "pndm", "ddpm", "sa_solver")
STABLE_DIFFUSION = {"_class_name": "PNDMScheduler", **SD_SCHEDULE, "skip_prk_steps": True}
SMALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 5}


def outcomes_of(engine: Engine, *, most: int = 1000) -> list[Rendered | Failed]:
    """Step until the engine is empty."""
    done: list[Rendered | Failed] = []
    for _ in range(most):
        if not engine.busy:
            return done
        done += engine.step()
        engine.check_integrity()
    raise AssertionError("an image waits for ever")


def rendered(engine: Engine) -> dict[Any, Rendered]:
    """Step until the engine is empty; return the images by handle."""
    done = outcomes_of(engine)
    return {each.handle: each for each in done if isinstance(each, Rendered)}


def alone(family: Family, job: Job, inputs: JobInputs = NO_INPUTS, **options: Any) -> bytes:
    engine = Engine(family, **options)
    engine.admit(engine.prepare(job, 0, inputs=inputs))
    return pixels(rendered(engine)[0])


def shared(
    family: Family, jobs: Sequence[Job], inputs: Sequence[JobInputs] = (), *, late: int = 0, **options: Any
) -> list[int]:
    """Render jobs together and compare each with the same job alone; return the evaluations that it did not make.

    The last ``late`` jobs come one by one, each a step after the one before.
    """
    options = {"slots": 3, **options}
    given = [*inputs, *[NO_INPUTS] * (len(jobs) - len(inputs))]
    engine, done = Engine(family, **options), list[Rendered | Failed]()
    for at, (job, each) in enumerate(zip(jobs, given, strict=True)):
        engine.admit(engine.prepare(job, at, inputs=each))
        if at >= len(jobs) - late - 1:
            done += engine.step()
    found = {each.handle: each for each in (*done, *outcomes_of(engine))}
    for at, (job, each) in enumerate(zip(jobs, given, strict=True)):
        outcome = found[at]
        assert pixels(outcome) == alone(family, job, each, **options), job
        assert isinstance(outcome, Rendered)
        assert outcome.spans == ()
        evaluations = outcome.evaluations if outcome.checkpoint is None else outcome.checkpoint.evaluations
        assert outcome.evaluations_made == evaluations - outcome.forked
    return [found[at].forked for at in range(len(jobs))]  # type: ignore[union-attr]


def sweep(field: str, values: Sequence[Any], *, first: int = 0, **fields: Any) -> list[Job]:
    """Return jobs of one seed and one prompt that differ in a field."""
    same = {"prompt": "image 7", "seed": 7, "num_inference_steps": 10, "guidance_scale": 4.0, "scheduler": "euler"}
    return [make(first + at, **{**same, **fields, field: value}) for at, value in enumerate(values)]


def until(*ends: float, **fields: Any) -> list[Job]:
    """Return jobs that differ in the end of their guidance."""
    return sweep("guidance_interval", [(0.0, end) for end in ends], **fields)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.filterwarnings("ignore")  # diffusers warns about its own use of numpy
def test_ends_of_guidance_share_what_is_before_them_with_every_kind_of_scheduler(scheduler: str) -> None:
    family = ExactFamily(**STABLE_DIFFUSION)
    jobs = until(0.3, 0.6, 0.9, scheduler=scheduler)
    company = [make(10 + at, scheduler=SCHEDULERS[at], num_inference_steps=6) for at in range(3)]
    evaluations = Engine(family, slots=1).prepare(jobs[0]).evaluations
    ends = [-(-3 * evaluations // 10), -(-6 * evaluations // 10)]
    assert shared(family, [*company, *jobs]) == [0, 0, 0, 0, *ends]
    # in another order, and while the first one is on its way
    assert sum(shared(family, [jobs[1], company[0], jobs[2], jobs[0]], late=2)) == sum(ends)


@pytest.mark.parametrize(
    ("jobs", "forked"),
    [
        (sweep("guidance_scale", (2.0, 3.0, 0.5), guidance_interval=(0.4, 1.0)), [0, 4, 4]),
        (sweep("negative_prompt", ("image 1", "image 2"), guidance_interval=(0.4, 1.0)), [0, 4]),
        (sweep("guidance_interval", ((0.2, 0.5), (0.5, 0.7), None)), [0, 2, 0]),
        (sweep("hires_scale", (None, 1.5, 2.0)), [0, 10, 10]),
        (sweep("hires_strength", (0.4, 0.8), hires_scale=2.0, hires_upscaler="pixel"), [0, 10]),
        (sweep("image_format", ("png", "webp")), [0, 10]),
        (sweep("scheduler_options", ({}, {"timestep_spacing": "trailing"})), [0, 0]),
        (sweep("seed", (1, 2)), [0, 0]),
        (sweep("prompt", ("image 1", "image 2")), [0, 0]),
        (sweep("num_inference_steps", (10, 11)), [0, 0]),
        (sweep("clip_skip", (0, 1)), [0, 0]),
        (sweep("width", (64, 128)), [0, 0]),
        (sweep("save_intermediates", (True, True)), [0, 0]),
        (sweep("draft", (0.0, 0.5, 0.8), guidance_interval=(0.0, 0.6)), [0, 4, 7]),
    ],
)
def test_what_differs_later_or_not_at_all_is_shared(jobs: list[Job], forked: list[int]) -> None:
    family = ExactFamily()
    family.max_clip_skip = 1
    if jobs[0].hires_upscaler == "pixel":
        family.inputs = ("image",)
    assert shared(family, jobs) == forked


def test_adapters_inputs_and_stages_of_a_model_in_one_batch(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model")
    family: Any = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
    make_controlnet(tmp_path / "net", folder, seed=1)
    write_peft(tmp_path / "one.safetensors", changes(family, rank=4, seed=1, ends=ATTENTION, text=True))
    named = f"net={tmp_path}/net,one={tmp_path}/one.safetensors"
    family.use_catalogue(open_catalogue(named, cache=tmp_path / "cache", max_bytes=0, open_store=_no_store))
    inputs = Inputs()
    image, mask, control = inputs.add(paint(1)), inputs.add(paint_mask()), inputs.add(paint(2))
    controlled = {"controlnet": "net", "control_image": control, "guidance_scale": 1.0, **SMALL}
    jobs = [
        *sweep("loras", ("one:0.5@0.6", "one:0.9@0.6", "one:0.9@0.4", "one:0.9"), scheduler="dpm++2m", **SMALL),
        *sweep("control_guidance_end", (0.4, 0.8, 1.0), first=4, **controlled),
        *sweep("strength", (0.6, 0.8, 0.8), first=7, image=image, guidance_interval=(0.0, 0.5), **SMALL),
        *until(0.5, 1.0, first=10, image=image, mask_image=mask, mask_blur=2, scheduler="heun", **SMALL),
        *sweep("hires_strength", (0.3, 0.6), first=12, hires_scale=1.5, scheduler="euler_a", **SMALL),
    ]
    reader: Any = InputReader
    found = shared(family, jobs, [reader(inputs, family).read(job) for job in jobs])
    # of 5 evaluations; of 4 on an image with strength 0.8, whose noise is another one; of 9 on a mask, two a step
    assert found == [0, 3, 2, 0, 0, 2, 4, 0, 0, 4, 0, 5, 0, 5]


def _no_store(bucket: str) -> Any:
    raise AssertionError(bucket)


def test_refiners_share_what_is_before_them(tmp_path: Path) -> None:
    family = make_refinable(tmp_path).family
    same: dict[str, Any] = {"prompt": "image", "seed": 3, "guidance_scale": 3.0, "scheduler": "dpm++2m"}
    jobs = [
        refined(0, refiner_start=0.4, **same),
        refined(1, refiner_start=0.8, **same),
        refined(2, refiner_start=0.8, refiner="other", **same),
        refined(3, refiner=None, **same),
    ]
    assert shared(family, jobs) == [0, 2, 4, 4]


@pytest.mark.parametrize("kind", ["flux", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_other_families(kind: Any, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / kind, kind=kind)
    family = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
    scheduler = "flow_heun" if kind == "flux" else "heun"
    jobs = until(0.4, 0.8, scheduler=scheduler, **SMALL)
    assert shared(family, [make(9, **SMALL), *jobs])[2] > 2


# -- waiting -------------------------------------------------------------------------------------------------


def test_those_that_wait_keep_no_other_waiting_and_take_no_slot() -> None:
    engine = Engine(ExactFamily(), slots=2)
    jobs = until(0.5, 0.6, 0.7, 0.8)
    for at, job in enumerate((*jobs, make(8), make(9))):
        engine.admit(engine.prepare(job, at))
    engine.step()
    assert [image.handle for image in engine._running] == [0, 4]
    assert engine.free == 0, "one that does not wait for another waits for a slot"
    assert engine.cancel(5)
    assert engine.free == 0
    assert engine.cancel(4)
    assert engine.free == 1
    assert {each.handle: each.forked for each in rendered(engine).values()} == {0: 0, 1: 5, 2: 6, 3: 7}


def test_an_urgent_image_waits_for_none() -> None:
    engine = Engine(ExactFamily(), slots=3)
    first, second, third = until(0.5, 0.7, 1.0)
    engine.admit(engine.prepare(first, 0))
    engine.step()
    engine.admit(engine.prepare(second, 1))
    engine.admit(engine.prepare(third, 2, urgent=True))
    engine.step()
    assert [image.handle for image in engine._running] == [0, 2]
    assert {each.handle: each.forked for each in rendered(engine).values()} == {0: 0, 1: 7, 2: 0}
    # but it goes on from a beginning that is kept
    engine.admit(engine.prepare(second, 3, urgent=True))
    assert rendered(engine)[3].forked == 7


def test_a_beginning_is_left_for_those_that_come_later() -> None:
    family = ExactFamily()
    engine = Engine(family, slots=3)
    jobs = until(0.3, 0.5, 0.6, 0.8)
    for at in (0, 1):
        engine.admit(engine.prepare(jobs[at], at))
    assert {each.handle: each.forked for each in rendered(engine).values()} == {0: 0, 1: 3}
    # none of them is here any more; the second one has left its state where its guidance ended
    for at in (2, 3):
        engine.admit(engine.prepare(jobs[at], at))
    found = rendered(engine)
    assert {each.handle: each.forked for each in found.values()} == {2: 5, 3: 6}
    assert [pixels(found[at]) for at in (2, 3)] == [alone(family, jobs[at], slots=3) for at in (2, 3)]


def test_a_beginning_of_other_rows_is_not_used() -> None:
    family = ExactFamily()
    engine = Engine(family, slots=4, micro_batch=8)
    first, second, third = until(0.5, 0.7, 0.9)
    engine.admit(engine.prepare(first, 0))
    engine.admit(engine.prepare(second, 1))
    while not dict(engine.remaining())[1]:
        engine.step()
    assert engine._queue.first() is None or engine._running
    # memory runs out, and a call of the model has fewer rows from then on
    family.before_predict = _run_out(family)
    done = rendered(engine)
    engine.admit(engine.prepare(third, 2))
    done |= rendered(engine)
    for at, job in enumerate((first, second, third)):
        assert done[at].micro_batch == 4
        assert done[at].spans == ()
        assert pixels(done[at]) == alone(family, job, slots=2, micro_batch=4)
    assert done[1].forked in (0, 5)


def _run_out(family: ExactFamily) -> Any:
    def fail(_: list[int]) -> None:
        family.before_predict = lambda _: None
        raise torch.OutOfMemoryError("no memory")

    return fail


def test_few_images_wait_and_little_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(ExactFamily(), slots=1)
    ends = [at / 10 for at in range(1, 10)]
    for at, job in enumerate(until(*ends)):
        engine.admit(engine.prepare(job, at))
    engine.step()
    assert sum(image.held for image in engine._queue) == 4
    assert len(rendered(engine)) == 9
    monkeypatch.setattr("latentfarm_worker.engine.forks._MAX_BYTES", 1)
    found = shared(ExactFamily(), until(*ends))
    assert sum(found) == 0, "nothing fits, and nothing waits for ever"


# -- histories -----------------------------------------------------------------------------------------------


class Breaking(ExactFamily):
    """Breaks its next call if ``error`` is set."""

    error: Exception | None = None

    def predict(self, *arguments: Any) -> torch.Tensor:
        error, self.error = self.error, None
        if error is not None:
            raise error
        return super().predict(*arguments)


POOL = [
    *until(0.3, 0.5, 0.8, 1.0),
    *sweep("hires_scale", (1.5, 2.0), first=4, guidance_interval=(0.0, 0.8)),
    *sweep("draft", (0.4,), first=6, guidance_interval=(0.0, 0.5)),
    *until(0.4, 0.7, first=7, scheduler="dpm++3m-sde", seed=8),
    *until(0.4, 0.7, first=9, scheduler="kdpm2_a", seed=9),
    *until(0.4, 0.7, first=11, seed=9, width=128),
]
IMAGES: dict[tuple[int, int], bytes] = {}


def wanted(index: int, slots: int) -> bytes:
    """Return the pixels of a job of the pool alone."""
    if (index, slots) not in IMAGES:
        IMAGES[index, slots] = alone(ExactFamily(), POOL[index], slots=slots)
    return IMAGES[index, slots]


class History:
    """What happens in an engine; each image that ends is compared with the same job alone."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._family = Breaking()
        self.engine = Engine(self._family, slots=slots)
        self._admitted = 0
        #: places of jobs in the pool by handle
        self.images: dict[Any, int] = {}

    def run(self, action: str, number: int) -> None:
        if action in {"admit", "urgent"}:
            self._admitted += 1
            handle = self._admitted
            self.images[handle] = number % len(POOL)
            self.engine.admit(self.engine.prepare(POOL[number % len(POOL)], handle, urgent=action == "urgent"))
        elif action == "break":
            self._family.error = RuntimeError("a broken call")
        elif action == "step":
            for _ in range(number % 5):
                self.step()
        elif self.images:
            handle = [*self.images][number % len(self.images)]
            self._put_down(handle, keep=action == "park")

    def _put_down(self, handle: Any, *, keep: bool) -> None:
        if keep:
            for parked in self.engine.park([handle]):
                again = self.engine.prepare(parked.job, parked.handle, checkpoint=parked.checkpoint)
                self.engine.admit(again)
        else:
            self.engine.cancel(handle)
            del self.images[handle]

    def step(self) -> None:
        try:
            outcomes = self.engine.step()
        except RuntimeError as error:
            outcomes = [*self.engine.isolate(error)]
        self.engine.check_integrity()
        for outcome in outcomes:
            place = self.images.pop(outcome.handle)
            # one that breaks a call alone is the cause
            assert isinstance(outcome, Failed) or pixels(outcome) == wanted(place, self._slots)


ACTIONS = st.sampled_from(["admit", "admit", "urgent", "step", "step", "cancel", "park", "break"])


@settings(max_examples=30, deadline=None)
@given(actions=st.lists(st.tuples(ACTIONS, st.integers(0, 59)), max_size=40), slots=st.integers(1, 4))
def test_images_have_their_bytes_after_any_history(actions: list[tuple[str, int]], slots: int) -> None:
    history = History(slots)
    for action, number in actions:
        history.run(action, number)
    for _ in range(2000):
        if not history.engine.busy:
            break
        history.step()
    assert not history.images, "each image has ended"
