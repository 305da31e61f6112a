"""Images that are parked, suspended or in a broken call: what is repeated, who waits, and that no byte differs."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import make, run, run_isolating
from tests.support.exact import ExactFamily

from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.engine.image_checkpoint import ImageCheckpoint, decode, encode

pytestmark = pytest.mark.unit

FAMILY = ExactFamily()
#: noise, a past, two evaluations a step; a strip of intermediates; a second stage of either kind; another size
KINDS: tuple[dict[str, Any], ...] = (
    {"scheduler": "euler_a", "num_inference_steps": 6},
    {"scheduler": "dpm++2m", "num_inference_steps": 8, "save_intermediates": True},
    {"scheduler": "heun", "num_inference_steps": 3, "guidance_scale": 1.0},
    {"scheduler": "dpm++2m-sde", "num_inference_steps": 4, "hires_scale": 2.0, "hires_steps": 5},
    {"scheduler": "euler_a", "num_inference_steps": 4, "hires_scale": 2.0, "hires_upscaler": "pixel"},
    {"scheduler": "lms", "num_inference_steps": 7, "width": 128, "guidance_interval": (0.0, 0.6)},
)


class PixelFamily(ExactFamily):
    """An exact family that encodes images, for second stages whose input is enlarged pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = ("image",)


def bytes_of(outcome: Rendered | Failed) -> bytes:
    assert isinstance(outcome, Rendered), outcome
    return (outcome.pixels if outcome.strip is None else outcome.strip).numpy().tobytes()


@cache
def alone(kind: int, index: int) -> bytes:
    engine = Engine(PixelFamily(), slots=1)
    engine.admit(make(index, **KINDS[kind]))
    return bytes_of(run(engine)[index])


class History:
    """Images in two engines of different sizes, and what is kept of them elsewhere.

    Args:
        dice: chooses.
    """

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._family = PixelFamily()
        self._family.before_predict = self._fault
        #: what the next call of the model raises
        self._error: Exception | None = None
        self._engines = [Engine(self._family, slots=6, micro_batch=2, decode_group=4), Engine(self._family, slots=2)]
        self._kinds: dict[int, int] = {}
        #: by the place of the engine, the images in it
        self._inside: list[set[int]] = [set(), set()]
        #: the images outside, with their checkpoints
        self._outside: dict[int, bytes | None] = {}
        #: where images become drafts, and those that are to be finished
        self._drafts: dict[int, int] = {}
        self._finish: set[int] = set()
        self.done: dict[int, bytes] = {}

    def come(self) -> None:
        index, kind = len(self._kinds), self._dice.randrange(len(KINDS))
        self._kinds[index], self._outside[index] = kind, None
        job = make(index, **KINDS[kind])
        if self._dice.random() < 0.4:
            self._drafts[index] = self._dice.randrange(1, self._engines[0].prepare(job).evaluations)

    def admit(self) -> None:
        if not self._outside:
            return
        index = self._dice.choice(sorted(self._outside))
        body, at = self._outside.pop(index), self._dice.randrange(2)
        checkpoint = None if body is None else decode(body)
        job, urgent = make(index, **KINDS[self._kinds[index]]), self._dice.random() < 0.3
        engine = self._engines[at]
        image = engine.prepare(job, index, checkpoint=checkpoint, urgent=urgent, interactive=self._dice.random() < 0.1)
        for stage in filter(None, (image, image.second)):
            stage.draft_at = self._draft(index)
        engine.admit(image)
        self._inside[at].add(index)

    def step(self) -> None:
        at = self._dice.randrange(2)
        engine = self._engines[at]
        try:
            outcomes = engine.step()
        except Exception as error:  # noqa: BLE001 (any)
            outcomes = [*engine.isolate(error)]
        engine.check_integrity()
        for outcome in outcomes:
            index: Any = outcome.handle
            self._inside[at].remove(index)
            if isinstance(outcome, Failed):
                # charged, so it begins again
                self._outside[index] = None
            elif outcome.checkpoint is not None:
                assert outcome.checkpoint.evaluations == self._drafts[index]
                self._outside[index] = encode(outcome.checkpoint)
                self._finish.add(index)
            else:
                assert index not in self.done
                self.done[index] = bytes_of(outcome)
                self._check_spans(outcome)

    def park(self) -> None:
        at = self._dice.randrange(2)
        some = {index for index in self._inside[at] if self._dice.random() < 0.5}
        left = dict(self._engines[at].remaining())
        for parked in self._engines[at].park(some):
            index: Any = parked.handle
            # no step is lost
            total = self._draft(index) or self._engines[at].prepare(parked.job).evaluations
            assert total - parked.checkpoint.evaluations == left[index]
            self._inside[at].remove(index)
            self._outside[index] = encode(parked.checkpoint)
        self._engines[at].check_integrity()

    def lose(self) -> None:
        at = self._dice.randrange(2)
        for index in sorted(self._inside[at]):
            if self._dice.random() < 0.3:
                assert self._engines[at].cancel(index)
                self._inside[at].remove(index)
                self._outside[index] = None

    def abort(self) -> None:
        at = self._dice.randrange(2)
        assert {*self._engines[at].abort_all()} == self._inside[at]
        self._outside |= dict.fromkeys(self._inside[at])
        self._inside[at].clear()

    def run_out_of_memory(self) -> None:
        self._error = MemoryError()

    def break_call(self) -> None:
        self._error = RuntimeError("a passing fault")

    def end(self) -> None:
        """Render everything to its end, and compare."""
        while self._outside or any(engine.busy for engine in self._engines):
            self.admit()
            self.step()
        assert self.done == {index: alone(kind, index) for index, kind in self._kinds.items()}
        assert not any(engine.paused() for engine in self._engines)

    def _draft(self, index: int) -> int | None:
        """Return the evaluations after which an image becomes a draft."""
        return None if index in self._finish else self._drafts.get(index)

    def _fault(self, _: list[int]) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _check_spans(self, outcome: Rendered) -> None:
        for one, other in pairwise(outcome.spans):
            assert one.stop == other.start
        if outcome.spans:
            assert outcome.spans[0].start == 0
            assert outcome.spans[-1].stop == outcome.evaluations


MOVES = ("come", "admit", "step", "park", "lose", "abort", "run_out_of_memory", "break_call")
WEIGHTS = (4, 5, 12, 3, 1, 0.3, 1.5, 0.6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(10, 120))
def test_images_have_their_bytes_after_any_history_of_drafts_parking_suspension_and_trouble(
    seed: int, length: int
) -> None:
    dice = random.Random(seed)  # noqa: S311 (dice, not keys)
    history = History(dice)
    for move in dice.choices(MOVES, WEIGHTS, k=length):
        getattr(history, move)()
    history.end()


def evaluations_of(family: ExactFamily) -> Counter[int]:
    """Return the evaluations of each image, by its index, which are counted from now on; each has two rows."""
    counts: Counter[int] = Counter()
    family.before_predict = lambda marks: counts.update({mark - 1 for mark in marks if mark})
    return counts


def steps(engine: Engine, count: int) -> None:
    for _ in range(count):
        assert engine.step() == []


def finish(parked: ImageCheckpoint, kind: int, index: int) -> bytes:
    """Return the image of a job that goes on in another engine."""
    engine = Engine(PixelFamily(), slots=3)
    engine.admit(engine.prepare(make(index, **KINDS[kind]), checkpoint=decode(encode(parked))))
    return bytes_of(run(engine)[index])


# -- parked --------------------------------------------------------------------------------------------------


def test_what_runs_or_is_paused_is_parked_and_what_waits_or_is_decoded_stays() -> None:
    engine = Engine(ExactFamily(), slots=2, decode_group=4)
    jobs = [make(index, **KINDS[0], partial_images=2) for index in range(4)]
    for job in jobs:
        engine.admit(job)
    steps(engine, 2)
    # a draft that waits for the decoder, and an urgent image, which pauses one that runs
    draft, urgent = engine.prepare(make(8, **KINDS[0]), urgent=True), engine.prepare(make(9, **KINDS[0]), urgent=True)
    draft.draft_at = 1
    engine.admit(draft)
    engine.admit(urgent)
    steps(engine, 1)
    assert [handle for handle, _ in engine.paused()] == ["b/0", "b/1"]
    assert all(seconds > 0 for _, seconds in engine.paused())
    parked = {
        each.handle: each.checkpoint for each in engine.park([job.name for job in (*jobs, draft.job, urgent.job)])
    }
    assert {handle: each.evaluations for handle, each in parked.items()} == {"b/0": 2, "b/1": 2, "b/9": 1}
    assert [handle for handle, _ in engine.remaining()] == ["b/2", "b/3", "b/8"]
    assert engine.paused() == []
    assert engine.park(["b/0", "b/2", "b/8"]) == []
    done = run(engine)
    assert {*done} == {2, 3, 8}
    for index in (0, 1, 9):
        assert finish(parked[f"b/{index}"], 0, index) == alone(0, index)


@pytest.mark.parametrize(("kind", "stage"), [(3, 2), (4, 1)], ids=["it waits for room", "its pixels are decoded"])
def test_an_image_is_parked_between_its_stages(kind: int, stage: int) -> None:
    engine = Engine(PixelFamily(), slots=2, decode_group=4)
    engine.admit(make(0, **KINDS[kind]))
    engine.admit(make(1, **KINDS[1]))
    steps(engine, 5)
    [parked] = engine.park(["b/0"])
    checkpoint = parked.checkpoint
    assert (checkpoint.stage, checkpoint.evaluations, [*checkpoint.columns]) == (stage, 4, [0])
    assert {*run(engine)} == {1}
    assert finish(checkpoint, kind, 0) == alone(kind, 0)


# -- suspended -----------------------------------------------------------------------------------------------


def test_an_urgent_image_of_another_size_begins_at_the_next_step_and_what_it_suspends_repeats_nothing() -> None:
    family = PixelFamily()
    engine = Engine(family, slots=3)
    counts = evaluations_of(family)
    for index in range(5):
        engine.admit(make(index, **KINDS[0]))
    steps(engine, 2)
    engine.admit(engine.prepare(make(7, **KINDS[5]), urgent=True))
    steps(engine, 1)
    assert counts == {0: 2, 1: 2, 2: 2, 7: 1}
    assert [handle for handle, _ in engine.paused()] == ["b/0", "b/1", "b/2"]
    assert engine.remaining()[:5] == [("b/0", 4), ("b/1", 4), ("b/2", 4), ("b/3", None), ("b/4", None)]
    done = run(engine)
    # what was suspended goes on before what has not begun
    assert next(iter(done)) == 7
    assert {*[*done][1:4]} == {0, 1, 2}
    assert counts == {index: 7 if index == 7 else 6 for index in done}
    for index, outcome in done.items():
        assert bytes_of(outcome) == alone(5 if index == 7 else 0, index)
        assert isinstance(outcome, Rendered)
        assert len(outcome.spans) == (2 if index in range(3) else 0)


def test_urgent_images_of_a_cohort_wait_for_urgent_ones_only() -> None:
    family = PixelFamily()
    engine = Engine(family, slots=3)
    counts = evaluations_of(family)
    engine.admit(engine.prepare(make(0, **KINDS[0]), urgent=True))
    engine.admit(make(1, **KINDS[0]))
    steps(engine, 2)
    engine.admit(engine.prepare(make(7, **KINDS[0]), urgent=True, cohort="alone"))
    steps(engine, 1)
    assert counts == {0: 3, 1: 2}
    done = run(engine)
    assert [*done] == [0, 7, 1]
    assert counts == {0: 6, 1: 6, 7: 6}


# -- memory --------------------------------------------------------------------------------------------------


class Broken(NamedTuple):
    """The images of a broken call, and the evaluations of each image by its index, broken ones included."""

    handles: list[object]
    evaluations: Counter[int]


def break_at(call: int, family: ExactFamily, engine: Engine, error: Exception) -> Broken:
    """Let one of the next calls of the model raise an error; they are counted from 0."""
    calls, broken = iter(range(1_000_000)), Broken([], Counter())

    def count(marks: list[int]) -> None:
        broken.evaluations.update({mark - 1 for mark in marks if mark})
        if next(calls) == call:
            broken.handles.extend(engine.at_risk())
            raise error

    family.before_predict = count
    return broken


@pytest.mark.parametrize("kind", [0, 1], ids=["noise", "a past and a strip"])
def test_if_memory_runs_out_only_the_images_of_the_broken_call_start_again(kind: int) -> None:
    family = PixelFamily()
    # three calls of two images a step: the second one of the third step breaks
    engine = Engine(family, slots=6, micro_batch=4)
    broken = break_at(7, family, engine, MemoryError())
    for index in range(6):
        engine.admit(make(index, **KINDS[kind]))
    done = run(engine)
    assert broken.handles == ["b/2", "b/3"]
    evaluations = KINDS[kind]["num_inference_steps"]
    assert broken.evaluations == {index: evaluations + (3 if index in {2, 3} else 0) for index in range(6)}
    assert engine.usable_slots < 6
    for index, outcome in done.items():
        assert isinstance(outcome, Rendered)
        assert bytes_of(outcome) == alone(kind, index)
        # the first call of the step was made, the last one was not
        done_before = {0: 3, 1: 3, 4: 2, 5: 2}.get(index, evaluations)
        spans = [(span.start, span.stop) for span in outcome.spans]
        assert spans == ([(0, done_before), (done_before, evaluations)] if done_before < evaluations else [])


def test_if_a_call_gets_other_rows_all_images_start_again() -> None:
    family = PixelFamily()
    engine = Engine(family, slots=4, micro_batch=8)
    broken = break_at(2, family, engine, MemoryError())
    for index in range(4):
        engine.admit(make(index, **KINDS[0]))
    done = run(engine)
    assert broken.evaluations == dict.fromkeys(range(4), 6 + 3)
    for index, outcome in done.items():
        assert isinstance(outcome, Rendered)
        assert (outcome.spans, outcome.micro_batch) == ((), 4)
        assert bytes_of(outcome) == alone(0, index)


def test_an_image_that_went_on_from_a_checkpoint_goes_back_to_it() -> None:
    family = PixelFamily()
    engine = Engine(family, slots=1)
    engine.admit(make(0, **KINDS[0]))
    steps(engine, 3)
    [parked] = engine.park(["b/0"])
    broken = break_at(2, family, engine, RuntimeError("a passing fault"))
    engine.admit(engine.prepare(parked.job, checkpoint=parked.checkpoint))
    done = run_isolating(engine)
    assert broken.handles == ["b/0"]
    # two of the three that were missing and the broken one, and the three again
    assert broken.evaluations == {0: 6}
    assert bytes_of(done[0]) == alone(0, 0)
