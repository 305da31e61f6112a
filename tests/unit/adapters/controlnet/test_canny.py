"""Canny's edges: those of OpenCV, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from latentfarm_worker.adapters.controlnet.canny import _connected, canny

pytestmark = pytest.mark.unit

FILES = Path(__file__).parent / "files"
SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)


def read(name: str) -> NDArray[Any]:
    with Image.open(FILES / name) as image:
        return np.asarray(image)


@pytest.mark.parametrize(("low", "high"), [(100, 200), (60, 200)])
def test_edges_are_those_of_opencv(low: int, high: int) -> None:
    # files: made by cv2.Canny of OpenCV 5.0.0 from a scene with noise, and with lines that are weak in places
    assert np.array_equal(canny(read("scene.png"), low, high), read(f"scene-edges-{low}-{high}.png"))


def test_an_image_of_one_color_has_no_edge() -> None:
    assert not canny(np.full((9, 7, 3), 200, np.uint8)).any()


def test_the_border_of_an_image_is_no_edge_and_a_line_reaches_it() -> None:
    image = np.zeros((8, 10, 3), np.uint8)
    image[:, 5:, 1] = 255
    edges = canny(image)
    assert edges.sum() == 8
    assert edges[:, 4].all() or edges[:, 5].all()


@given(st.data())
def test_weak_pixels_belong_to_an_edge_if_they_are_connected_to_a_strong_one(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    ridge = data.draw(arrays.arrays(np.bool_, shape))
    strong = data.draw(arrays.arrays(np.bool_, shape)) & ridge
    found = {*zip(*np.nonzero(strong), strict=True)}
    waiting = [*found]
    while waiting:
        y, x = waiting.pop()
        for near in ((y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)):
            inside = 0 <= near[0] < shape[0] and 0 <= near[1] < shape[1]
            if inside and ridge[near] and near not in found:
                found.add(near)
                waiting.append(near)
    assert {*zip(*np.nonzero(_connected(ridge, strong)), strict=True)} == found
