"""What is on the device now: read on request, without any effect on the images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import make, pixels, run

from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.slot_views import SlotViews

pytestmark = pytest.mark.unit

FIELDS: dict[str, Any] = {"scheduler": "euler_a", "num_inference_steps": 6}


def view(engine: Engine) -> SlotViews:
    """Read the slots now."""
    engine.view_slots()
    views = engine.slot_viewer.take()
    assert views is not None
    return views


def facts(views: SlotViews) -> list[tuple[Any, int, int]]:
    return [(slot.handle, slot.step, slot.steps) for slot in views.slots]


def test_each_image_on_the_device_is_seen_at_its_step_in_a_stable_order(sd1: Any) -> None:
    engine = Engine(sd1, slots=3)
    assert facts(view(engine)) == []
    for index, steps in enumerate((2, 6, 5, 4)):
        engine.admit(make(index, num_inference_steps=steps, scheduler="euler"))
    assert facts(view(engine)) == []
    engine.step()
    assert facts(view(engine)) == [("b/0", 1, 2), ("b/1", 1, 6), ("b/2", 1, 5)]
    engine.step()
    assert facts(view(engine)) == [("b/1", 2, 6), ("b/2", 2, 5)]
    engine.step()
    # the fourth has the place of the first
    assert facts(view(engine)) == [("b/3", 1, 4), ("b/1", 3, 6), ("b/2", 3, 5)]
    views = view(engine)
    assert {*views.estimates} == {0, 1, 2}
    batch, image = engine._running.batch, next(iter(engine._running))
    assert batch is not None
    with torch.inference_mode():
        assert torch.equal(views.estimates[views.slots.index(view(engine).slots[1])], batch.estimate(image))
    engine.abort_all()
    assert facts(view(engine)) == []


def test_a_paused_image_is_seen_at_the_step_where_it_waits(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    engine.admit(make(0, **FIELDS))
    engine.step()
    engine.admit(engine.prepare(make(1, **FIELDS), interactive=True))
    engine.step()
    engine.step()
    views = view(engine)
    assert facts(views) == [("b/0", 1, 6), ("b/1", 2, 6)]
    assert {*views.estimates} == {0, 1}
    run(engine)


def test_an_image_before_its_first_evaluation_has_no_estimate(sd1: Any) -> None:
    engine = Engine(sd1, slots=2)
    engine.admit(make(0, **FIELDS))
    with torch.inference_mode():
        engine._admit_waiting()
    views = view(engine)
    assert (facts(views), views.estimates) == ([("b/0", 0, 6)], {})


def test_nothing_is_read_again_before_it_is_taken_and_nothing_is_taken_twice(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    assert engine.slot_viewer.take() is None
    engine.admit(make(0, **FIELDS))
    engine.step()
    engine.view_slots()
    engine.step()
    engine.view_slots()
    views = engine.slot_viewer.take()
    assert views is not None
    assert facts(views) == [("b/0", 1, 6)]
    assert engine.slot_viewer.take() is None


def test_a_view_has_the_image_of_the_warm_up_and_the_last_four_each_once(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    engine.warm_up()
    warm_up = pixels_of(engine._decoder.examples[0].pixels)
    images = [run_one(engine, index) for index in range(6)]
    assert [pixels_of(each.pixels) for each in view(engine).decoded] == [warm_up, *images[2:]]
    assert view(engine).decoded == ()
    again = run_one(engine, 6)
    assert [pixels_of(each.pixels) for each in view(engine).decoded] == [again]


def run_one(engine: Engine, index: int) -> bytes:
    engine.admit(make(index))
    return pixels(run(engine)[index])


def pixels_of(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


@pytest.fixture(scope="module")
def plain(sd1: Any) -> list[bytes]:
    engine = Engine(sd1, slots=2)
    for index in range(3):
        engine.admit(make(index, **FIELDS))
    done = run(engine)
    return [pixels(done[index]) for index in range(3)]


@settings(max_examples=8, deadline=None)
@given(begun=st.lists(st.booleans(), min_size=40, max_size=40), taken=st.lists(st.booleans(), min_size=40, max_size=40))
def test_images_have_the_same_bytes_whenever_they_are_viewed(
    sd1: Any, plain: list[bytes], begun: list[bool], taken: list[bool]
) -> None:
    engine, done = Engine(sd1, slots=2), {}
    for index in range(3):
        engine.admit(make(index, **FIELDS))
    for begins, takes in zip(begun, taken, strict=True):
        done.update({each.job.index: each for each in engine.step()})
        if begins:
            engine.view_slots()
        if takes:
            engine.slot_viewer.take()
    assert [pixels(done[index]) for index in range(3)] == plain
