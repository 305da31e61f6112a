"""The drawn world: its images, its split, its captions."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_training import captions, world
from mini_training.judge import judge

COMBINATIONS = list(world.combinations())
combinations = st.sampled_from(COMBINATIONS)
seeds = st.integers(0, 2**32 - 1)

pytestmark = pytest.mark.unit


@settings(max_examples=20, deadline=None)
@given(combinations, seeds)
def test_the_same_seed_draws_the_same_image(combination: world.Combination, seed: int) -> None:
    first, second = (world.draw(world.scene_of(combination, np.random.default_rng(seed))) for _ in range(2))
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)


@pytest.mark.parametrize("shape", list(world.SHAPES))
def test_shapes_stay_inside_the_image_and_cover_some_of_it(shape: str) -> None:
    for x, y in world.PLACES.values():
        radius = world.SIZES["large"][1]
        cover = world.coverage(shape, x, y, radius, 0.0, 128)
        assert 0.04 < cover.mean() < 0.25
        rim = np.concatenate([cover[0], cover[-1], cover[:, 0], cover[:, -1]])
        # A large star at the top may just touch the edge with its tip.
        assert rim.mean() < 0.01


def test_a_shape_covers_the_same_share_at_every_image_size() -> None:
    shares = [world.coverage("star", 0.5, 0.5, 0.25, 0.1, side).mean() for side in (64, 128, 200)]
    assert max(shares) - min(shares) < 0.002


def test_a_circle_covers_its_area() -> None:
    cover = world.coverage("circle", 0.5, 0.5, 0.25, 0.0, 256)
    assert cover.mean() == pytest.approx(np.pi * (0.92 * 0.25) ** 2, rel=0.01)


def test_the_split_is_stable_and_a_tenth() -> None:
    held_out = [c for c in COMBINATIONS if world.is_held_out(c)]
    assert len(COMBINATIONS) == 7200
    # A changed number means that the shipped weights have seen what they are measured on.
    assert len(held_out) == 708
    assert {c[0] for c in held_out} == set(world.SHAPES)


def test_training_never_draws_a_held_out_combination() -> None:
    rng = np.random.default_rng(0)
    scenes = [world.training_scene(rng) for _ in range(3000)]
    singles = [s for s in scenes if len(s.things) == 1]
    assert not any(world.is_held_out(s.combination) for s in singles)
    assert {s.combination[0] for s in singles} == set(world.SHAPES)
    assert 0.14 < 1 - len(singles) / len(scenes) < 0.22


def test_objects_differ_in_colour_from_their_background() -> None:
    rng = np.random.default_rng(1)
    for scene in (world.training_scene(rng) for _ in range(500)):
        assert all(thing.colour != scene.background for thing in scene.things)


def test_named_colours_are_far_apart() -> None:
    values = np.asarray(list(world.COLOURS.values()), dtype=float)
    gaps = np.linalg.norm(values[:, None] - values[None], axis=-1) + 1e9 * np.eye(len(values))
    assert gaps.min() > 90


@settings(max_examples=60, deadline=None)
@given(combinations, seeds)
def test_the_full_caption_names_everything(combination: world.Combination, seed: int) -> None:
    text = captions.full_caption(world.scene_of(combination, np.random.default_rng(seed)))
    shape, colour, background, place, size = combination
    assert f"{size} {colour} {shape}" in text
    assert captions.PLACE_WORDS[place][0] in text
    assert f"{background} background" in text


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_captions_always_name_the_shape(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = world.training_scene(rng)
    text = captions.caption(scene, rng)
    for thing in scene.things:
        words = (*captions.SHAPE_WORDS[thing.shape], captions.THAI_SHAPES[thing.shape])
        assert any(word in text for word in words)


def test_captions_vary() -> None:
    rng = np.random.default_rng(2)
    scene = world.scene_of(COMBINATIONS[100], rng)
    assert len({captions.caption(scene, rng) for _ in range(200)}) > 60


def test_common_parts_are_omitted_more_often() -> None:
    rng = np.random.default_rng(3)
    shape, colour, _, _, size = COMBINATIONS[0]

    def unsaid(background: str) -> int:
        scene = world.scene_of((shape, colour, background, "left", size), rng)
        words = (background, captions.THAI_COLOURS[background])
        return sum(not any(w in captions.caption(scene, rng) for w in words) for _ in range(300))

    assert unsaid("white") > unsaid("blue") + 30


def test_a_scene_can_be_moved_and_the_image_follows() -> None:
    scene = world.scene_of(("ring", "red", "white", "left", "small"), np.random.default_rng(4))
    moved = dataclasses.replace(scene, things=(dataclasses.replace(scene.things[0], x=0.7),))
    assert judge(world.draw(scene)).thing.place == "left"
    assert judge(world.draw(moved)).thing.place == "right"
