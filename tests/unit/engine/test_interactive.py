"""Interactive images: they begin at the next step, and those that are paused for them lose nothing."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import BreakingFamily, make, pixels, run_isolating

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine

pytestmark = pytest.mark.unit

#: noise is drawn in each step of these, so a step too many or too few changes them
FIELDS: dict[str, Any] = {"scheduler": "euler_a", "num_inference_steps": 6}


def admit(engine: Engine, job: Job, *, interactive: bool = False) -> None:
    engine.admit(engine.prepare(job, interactive=interactive))


def run(engine: Engine) -> dict[int, Any]:
    """Step until the engine is empty; return the outcomes by job index, in their order."""
    done = {}
    while engine.busy:
        done.update({each.job.index: each for each in engine.step()})
        engine.check_integrity()
    return done


@pytest.fixture(scope="module")
def plain(sd1: Any) -> list[bytes]:
    """The pixels of three images that nothing interrupted; the second has no guidance."""
    engine = Engine(sd1, slots=3)
    for index in range(3):
        admit(engine, job(index))
    done = run(engine)
    return [pixels(done[index]) for index in range(3)]


def job(index: int) -> Job:
    return make(index, **FIELDS, **({"guidance_scale": 1.0} if index == 1 else {}))


def test_in_a_full_batch_it_begins_at_the_next_step_and_the_paused_image_goes_on(sd1: Any, plain: list[bytes]) -> None:
    engine = Engine(sd1, slots=3, micro_batch=6)
    for index in (0, 1, 2, 10, 11, 12):
        admit(engine, make(index, **FIELDS) if index > 2 else job(index))
    engine.step()
    engine.step()
    assert (engine.free, engine.free_within(0, urgent=True)) == (0, 3)
    admit(engine, make(20, **FIELDS), interactive=True)
    assert engine.free_within(0, urgent=True) == 2
    engine.step()
    assert engine.interactive_progress() == [("b/20", 1, 6)]
    [paused] = [image.job.index for image in engine._running if image.paused]
    assert engine.at_risk() == []
    done = run(engine)
    order = [*done]
    # it ends six steps after it came; what it paused goes on before what waits begins
    assert order.index(20) < order.index(paused) < min(map(order.index, (11, 12)))
    assert [pixels(done[index]) for index in range(3)] == plain


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_images_keep_their_bytes_whenever_interactive_ones_come(sd1: Any, plain: list[bytes], seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 (dice, not keys)
    engine, done = Engine(sd1, slots=2, micro_batch=6), {}
    for index in range(3):
        admit(engine, job(index))
    coming = [make(10 + number, **FIELDS, guidance_scale=dice.choice([1.0, 5.0])) for number in range(4)]
    while coming or engine.busy:
        while coming and dice.random() < 0.3:
            admit(engine, coming.pop(), interactive=True)
        done.update({each.job.index: each for each in engine.step()})
        engine.check_integrity()
    assert len(done) == 7
    assert [pixels(done[index]) for index in range(3)] == plain


def test_interactive_images_wait_for_their_like_and_suspend_images_of_another_size(sd1: Any) -> None:
    engine = Engine(sd1, slots=1, micro_batch=2)
    admit(engine, job(0))
    engine.step()
    admit(engine, make(1, **FIELDS), interactive=True)
    admit(engine, make(2, **FIELDS), interactive=True)
    admit(engine, make(3, **FIELDS, width=128), interactive=True)
    admit(engine, make(4, **FIELDS))
    done = run(engine)
    assert [*done] == [1, 2, 3, 0, 4]
    # it was paused for one and suspended for another
    assert [(span.start, span.stop) for span in done[0].spans] == [(0, 1), (1, 6)]
    engine = Engine(sd1, slots=1, micro_batch=2)
    admit(engine, job(0))
    assert pixels(done[0]) == pixels(run(engine)[0])


def test_a_paused_image_can_be_cancelled_and_a_cancelled_interactive_one_gives_its_rows_back(sd1: Any) -> None:
    engine = Engine(sd1, slots=2)
    for index in range(2):
        admit(engine, make(index, **FIELDS))
    engine.step()
    for index in (2, 3):
        admit(engine, make(index, **FIELDS), interactive=True)
    engine.step()
    assert [image.paused for image in engine._running] == [True, True, False, False]
    assert engine.cancel("b/0")
    assert engine.cancel("b/2")
    engine.step()
    engine.check_integrity()
    assert [(image.job.index, image.paused) for image in engine._running] == [(1, False), (3, False)]
    # both end with one step, and the interactive one is decoded first
    assert [*run(engine)] == [3, 1]


def test_an_interactive_image_that_breaks_the_model_harms_no_paused_one() -> None:
    engine = Engine(BreakingFamily(predict=[5]), slots=2)
    for index in range(2):
        admit(engine, make(index, num_inference_steps=4, scheduler="euler"))
    engine.step()
    admit(engine, make(5, num_inference_steps=4, scheduler="euler"), interactive=True)
    done = run_isolating(engine)
    assert {index: hasattr(each, "error") for index, each in done.items()} == {0: False, 1: False, 5: True}
