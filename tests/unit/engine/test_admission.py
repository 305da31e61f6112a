"""The admission policy, without a model and without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Hashable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm_worker.engine.admission import AdmissionQueue, BatchKey
from latentfarm_worker.latent_shape import LatentShape

pytestmark = pytest.mark.unit

NATIVE, WIDE, LARGE = LatentShape(8, 8), LatentShape(8, 16), LatentShape(16, 16)


@dataclass(eq=False)
class Image:
    name: str
    shape: LatentShape = NATIVE
    rows_needed: int = 2
    cohort: Hashable = None
    interactive: bool = False
    urgent: bool = False
    held: bool = False
    skipped: int = 0
    begun: bool = False

    def __post_init__(self) -> None:
        self.urgent |= self.interactive


def queue_of(*images: Image, slots: int = 2) -> AdmissionQueue[Image]:
    queue: AdmissionQueue[Image] = AdmissionQueue(slots=slots, native=NATIVE)
    for image in images:
        queue.append(image)
    return queue


def admit(
    queue: AdmissionQueue[Image],
    *,
    free: int = 4,
    rows: int = 4,
    shape: LatentShape = NATIVE,
    cohort: Hashable = None,
) -> str:
    """Take the images that begin now out of the queue; return their names."""
    starting = queue.next_images(BatchKey(shape, cohort), rows=rows, free=free)
    for image in starting:
        queue.remove(image)
    return "".join(image.name for image in starting)


def test_importing_the_policy_does_not_import_torch() -> None:
    code = "import sys, latentfarm_worker.engine.admission; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_interactive_images_begin_first_in_their_order() -> None:
    queue = queue_of(Image("a"), Image("I", interactive=True), Image("b"), Image("J", interactive=True))
    assert "".join(image.name for image in queue) == "IJab"
    assert (queue.free_slots(0), queue.free_slots(0, urgent=True)) == (0, 0)
    assert admit(queue, free=6) == "IJa"


def test_images_that_wait_take_no_slot_of_an_interactive_one() -> None:
    queue = queue_of(Image("a"), Image("b"), Image("c"))
    assert (queue.free_slots(2), queue.free_slots(2, urgent=True)) == (0, 1)


@pytest.mark.parametrize("interactive", [Image("I", WIDE, interactive=True), Image("I", interactive=True)])
def test_no_image_overtakes_an_interactive_one(interactive: Image) -> None:
    queue = queue_of(Image("a", rows_needed=1), interactive)
    # one row is free, or images of another shape run
    assert admit(queue, free=1) == ""
    assert admit(queue, shape=interactive.shape) == ("I" if interactive.shape == WIDE else "Ia")


def test_images_begin_in_order_and_a_single_free_row_goes_to_the_first_that_needs_no_more() -> None:
    queue = queue_of(Image("a"), Image("x", rows_needed=1), Image("b"), Image("y", rows_needed=1), Image("c"))
    assert admit(queue) == "axy"
    assert admit(queue, free=1) == ""
    assert admit(queue, free=4) == "bc"


@pytest.mark.parametrize(
    ("shape", "rows"), [(NATIVE, 8), (LatentShape(4, 8), 8), (WIDE, 4), (LARGE, 2), (LatentShape(64, 64), 2)]
)
def test_a_large_shape_gets_fewer_rows_and_never_less_than_two(shape: LatentShape, rows: int) -> None:
    assert queue_of(slots=4).max_rows(shape) == rows


def test_an_image_of_another_shape_is_overtaken_by_at_most_a_full_batch() -> None:
    queue = queue_of(Image("x", WIDE), *(Image(name) for name in "abcdef"))
    assert [admit(queue, free=2) for _ in range(5)] == ["a", "b", "c", "d", ""]
    assert queue.next_key(BatchKey(NATIVE)) == BatchKey(NATIVE)
    assert queue.next_key(None) == BatchKey(WIDE)
    assert admit(queue, shape=WIDE, rows=2, free=2) == "x"
    assert admit(queue) == "ef"


def test_an_image_of_two_rows_is_overtaken_by_at_most_a_full_batch_of_single_rows() -> None:
    queue = queue_of(Image("a"), *(Image(name, rows_needed=1) for name in "bcdefg"))
    assert [admit(queue, free=1) for _ in range(5)] == ["b", "c", "d", "e", ""]
    assert admit(queue, free=2) == "a"
    assert admit(queue, free=0) == ""


def test_the_first_waiting_image_sets_the_shape_and_the_cohort_of_an_empty_batch() -> None:
    assert queue_of().next_key(BatchKey(NATIVE)) is None
    assert queue_of(Image("x", WIDE, cohort="lost")).next_key(None) == BatchKey(WIDE, "lost")
    assert queue_of(Image("x", WIDE)).next_key(BatchKey(NATIVE)) == BatchKey(NATIVE)


def test_images_of_different_cohorts_never_run_together() -> None:
    queue = queue_of(Image("a"), Image("x", cohort="x"), Image("b"), Image("y", cohort="y"), Image("c"), slots=4)
    assert admit(queue, free=8, rows=8) == "abc"
    assert [admit(queue, free=8, rows=8, cohort=cohort) for cohort in (None, "x", "y")] == ["", "x", "y"]


def test_a_lone_suspect_is_overtaken_by_at_most_a_full_batch_and_the_others_go_on_after_it() -> None:
    queue = queue_of(Image("s", cohort="s"), *(Image(name) for name in "abcdef"))
    assert [admit(queue, free=2) for _ in range(5)] == ["a", "b", "c", "d", ""]
    # the batch is empty now
    assert queue.next_key(None) == BatchKey(NATIVE, "s")
    assert admit(queue, cohort="s") == "s"
    assert queue.next_key(None) == BatchKey(NATIVE)
    assert admit(queue) == "ef"


def test_free_slots_are_those_of_the_native_shape_without_running_and_waiting_rows() -> None:
    queue = queue_of(Image("a"), Image("b", rows_needed=1), slots=4)
    assert [queue.free_slots(rows) for rows in (0, 1, 3, 5, 9)] == [2, 2, 1, 0, 0]


def test_out_of_memory_halves_the_slots_of_its_shape_only() -> None:
    queue = queue_of(slots=8)
    # one slot of LARGE has the area of four native ones
    assert queue.max_rows(LARGE) == 4
    assert queue.reduce(LARGE, 4) == 4
    assert [queue.max_rows(shape) for shape in (LARGE, NATIVE)] == [2, 16]
    assert [queue.reduce(NATIVE, rows) for rows in (16, 8, 4)] == [4, 2, 1]
    assert queue.free_slots(0) == 1


def test_a_shape_gets_its_slots_back_if_one_job_was_the_cause() -> None:
    queue = queue_of(slots=8)
    queue.reduce(NATIVE, 16)
    queue.restore(NATIVE, 8)
    assert queue.max_rows(NATIVE) == 16
    # a job that nothing was reduced for changes nothing
    queue.reduce(NATIVE, 16)
    queue.restore(NATIVE, 0)
    assert queue.max_rows(NATIVE) == 8


def test_restarted_images_go_to_the_front_in_their_order() -> None:
    queue = queue_of(Image("c"))
    queue.prepend([Image("a"), Image("b")])
    assert [image.name for image in queue] == ["a", "b", "c"]
    assert queue.pop().name == "a"
    queue.clear()
    assert len(queue) == 0


def test_images_that_go_on_wait_before_those_that_have_not_begun() -> None:
    queue = queue_of(Image("c"), Image("i", interactive=True))
    for name, interactive in (("a", False), ("b", False), ("j", True), ("k", True)):
        queue.resume(Image(name, LARGE, interactive=interactive, begun=True))
    # interactive ones first, and each kind in its order
    assert "".join(image.name for image in queue) == "jkiabc"
    queue.append(Image("l", interactive=True))
    assert "".join(image.name for image in queue) == "jkilabc"
    # those of which no client waits for one are between both
    queue.append(Image("u", urgent=True))
    queue.resume(Image("v", urgent=True, begun=True))
    assert "".join(image.name for image in queue) == "jkilvuabc"
    queue.prepend([Image("d"), Image("w", urgent=True)])
    assert "".join(image.name for image in queue) == "jkilwvudabc"


IMAGES = st.lists(
    st.tuples(st.sampled_from([NATIVE, WIDE, LARGE]), st.sampled_from([1, 2]), st.sampled_from([None, None, "a", "b"])),
    max_size=30,
)


@given(images=IMAGES, slots=st.integers(1, 4), steps=st.lists(st.integers(1, 4), min_size=30, max_size=30))
def test_every_image_begins_none_starves_and_rows_never_overflow(
    images: list[tuple[LatentShape, int, Hashable]], slots: int, steps: list[int]
) -> None:
    waiting = [Image(str(at), shape, rows, cohort) for at, (shape, rows, cohort) in enumerate(images)]
    queue = queue_of(*waiting, slots=slots)
    running: list[tuple[Image, int]] = []
    key: BatchKey | None = None
    begun = 0
    for _ in range(1000):
        if not queue and not running:
            break
        key = queue.next_key(key if running else None) or key
        assert key is not None
        rows = queue.max_rows(key.shape)
        free = rows - sum(image.rows_needed for image, _ in running)
        assert free >= 0
        for image in queue.next_images(key, rows=rows, free=free):
            assert (image.shape, image.cohort) == key
            queue.remove(image)
            running.append((image, steps[begun]))
            begun += 1
        assert all(image.skipped <= max(2, 2 * slots) for image in queue)
        running = [(image, left - 1) for image, left in running if left > 1]
    assert begun == len(waiting)
