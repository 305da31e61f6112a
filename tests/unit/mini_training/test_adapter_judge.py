"""The judge of adapters is right about what was drawn, and about plain scenes."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from latentfarm_worker.adapters.controlnet.canny import canny
from mini_training import adapter_world, world
from mini_training.adapter_judge import depths, edge_overlap, grown, is_nested, is_outlined, is_striped

pytestmark = [pytest.mark.unit, pytest.mark.slow]

JUDGES: dict[str, Callable[[world.Image], bool]] = {
    "outlined": is_outlined,
    "striped": is_striped,
    "nested": is_nested,
}


def _scenes(count: int, *, rings: bool = True) -> list[world.Scene]:
    rng = np.random.default_rng(17)
    every = [c for c in world.combinations() if rings or c[0] != "ring"]
    return [world.scene_of(every[int(i)], rng) for i in rng.integers(len(every), size=count)]


def _blurred(image: world.Image) -> world.Image:
    soft = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    taps = [soft[i : i + 128, j : j + 128] for i in range(3) for j in range(3)]
    mean: world.Image = np.rint(np.mean(taps, axis=0)).astype(np.uint8)
    return mean


def _noisy(image: world.Image) -> world.Image:
    noise = np.random.default_rng(18).normal(0, 8, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("change", [None, _blurred, _noisy], ids=["sharp", "blurred", "noisy"])
@pytest.mark.parametrize("style", JUDGES)
def test_a_style_is_recognized(style: str, change: Callable[[world.Image], world.Image] | None) -> None:
    # a ring has a hole already, and no room for a smaller ring
    images = [adapter_world.draw(style, scene) for scene in _scenes(100, rings=style != "nested")]
    assert np.mean([JUDGES[style](change(i) if change else i) for i in images]) >= 0.99


@pytest.mark.parametrize("change", [None, _blurred, _noisy], ids=["sharp", "blurred", "noisy"])
@pytest.mark.parametrize("style", JUDGES)
def test_plain_scenes_have_no_style(style: str, change: Callable[[world.Image], world.Image] | None) -> None:
    images = [world.draw(scene) for scene in _scenes(150, rings=style != "nested")]
    assert np.mean([JUDGES[style](change(i) if change else i) for i in images]) < 0.01


@pytest.mark.parametrize(("drawn", "style"), [("outlined", "striped"), ("striped", "outlined")])
def test_one_style_is_not_another(drawn: str, style: str) -> None:
    # A small striped object has one stripe in the middle and the others all around it, as an outline.
    images = [adapter_world.draw(drawn, s) for s in _scenes(100) if drawn == "outlined" or s.size == "large"]
    assert np.mean([JUDGES[style](image) for image in images]) <= 0.05


def test_a_ring_is_a_nested_circle() -> None:
    rings = [scene for scene in _scenes(100) if scene.things[0].shape == "ring"]
    assert all(is_nested(world.draw(scene)) for scene in rings)


@pytest.mark.parametrize(
    ("hole", "x", "nested"), [("square", 0.5, True), ("square", 0.62, False), ("cross", 0.5, False)]
)
def test_only_a_hole_of_the_same_shape_in_the_middle_is_nested(hole: str, x: float, *, nested: bool) -> None:
    white, red = (250, 250, 250), (215, 30, 40)
    things = (
        world.Thing("square", "red", red, 0.5, 0.5, 0.27, 0.0),
        world.Thing(hole, "white", white, x, 0.5, 0.13, 0.0),
    )
    assert is_nested(world.draw(world.Scene("white", white, things))) == nested


@pytest.mark.parametrize("style", JUDGES)
def test_an_empty_image_has_no_style(style: str) -> None:
    assert not JUDGES[style](np.full((128, 128, 3), (35, 70, 220), dtype=np.uint8))


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.uint8, (32, 32, 3)))
def test_any_image_gets_a_verdict(image: np.ndarray) -> None:
    assert {type(judge(image)) for judge in JUDGES.values()} == {bool}


def test_edges_overlap_themselves_and_their_neighbours_within_the_tolerance() -> None:
    edges = [canny(world.draw(scene)) for scene in _scenes(20)]
    for map_ in edges:
        assert edge_overlap(map_, map_) == 1
        assert edge_overlap(map_, np.roll(map_, 1, axis=0)) > 0.95
        assert edge_overlap(map_, np.roll(map_, 4, axis=0)) < 0.6
    others = [edge_overlap(a, b) for a, b in itertools.pairwise(edges)]
    assert np.mean(others) < 0.25


def test_edges_of_another_image_without_any_have_no_overlap() -> None:
    line = np.zeros((8, 8), dtype=bool)
    line[4] = True
    nothing = np.zeros_like(line)
    assert edge_overlap(line, nothing) == 0
    assert edge_overlap(nothing, nothing) == 1


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.bool_, (9, 11), elements=st.booleans()), st.integers(0, 3))
def test_a_depth_is_the_distance_to_the_outside(mask: np.ndarray, rounds: int) -> None:
    depth = depths(mask)
    outside = np.pad(~mask, 4, constant_values=True)
    assert np.array_equal(depth > rounds, ~grown(outside, rounds)[4:-4, 4:-4])
