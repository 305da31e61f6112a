"""An input of another size becomes the job's as it is named."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.support.input_images import paint

from latentfarm.errors import JobError
from latentfarm_worker.input_images.resizing import resize

pytestmark = pytest.mark.unit

SIDES = st.integers(1, 200)
MODES: list[Literal["crop", "pad", "stretch"]] = ["crop", "pad", "stretch"]


@given(
    width=SIDES,
    height=SIDES,
    to_width=SIDES,
    to_height=SIDES,
    mode=st.sampled_from(MODES),
    fill=st.none() | st.just(255),
)
def test_every_mode_gives_the_size(
    width: int, height: int, to_width: int, to_height: int, mode: Literal["crop", "pad", "stretch"], fill: int | None
) -> None:
    image = Image.new("RGB", (width, height), (10, 20, 30))
    made = resize(image, to_width, to_height, mode, fill=fill)
    assert (made.size, made.mode) == ((to_width, to_height), "RGB")
    colours = {(10, 20, 30), *([(255, 255, 255)] if fill else [])}
    assert {tuple(pixel) for pixel in np.asarray(made).reshape(-1, 3).tolist()} <= colours


def test_an_image_of_the_size_is_not_touched() -> None:
    image = paint(1)
    assert resize(image, 64, 64, None) is image


def test_another_size_without_a_mode_is_refused_with_the_cure() -> None:
    with pytest.raises(
        JobError, match="it has 64x64 pixels, and the job 96x64; write resize crop, pad or stretch"
    ) as caught:
        resize(paint(1), 96, 64, None)
    assert caught.value.code == "input_size"


def test_crop_keeps_the_middle_pad_keeps_all_and_stretch_the_corners() -> None:
    marked = np.zeros((40, 80, 3), dtype=np.uint8)
    marked[:, 20:60] = 200
    image = Image.fromarray(marked)
    assert (np.asarray(resize(image, 40, 40, "crop")) == 200).all()
    padded = np.asarray(resize(image, 80, 80, "pad"))
    assert (padded[20:60] == marked).all()
    assert (padded[:20] == marked[0]).all(), "the pixels at the edges"
    assert (padded[60:] == marked[-1]).all()
    mask = np.asarray(resize(image.convert("L"), 80, 80, "pad", fill=255))
    assert (mask[:20] == 255).all()
    stretched = np.asarray(resize(image, 40, 40, "stretch"))
    assert (stretched[:, 14:26] > 198).all()
    assert (stretched[:, :6] < 2).all()
