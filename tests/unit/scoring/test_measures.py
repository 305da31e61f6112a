"""Sharpness, contrast and the perceptual hash, against their definitions and against what they are for."""

from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from latentfarm_worker.scoring.measures import contrast, phash, sharpness

pytestmark = pytest.mark.unit

_SIDES = st.integers(1, 40)


def scene(seed: int, *, side: int = 96) -> Image.Image:
    """Return an image with large areas, edges and some texture."""
    source = np.random.default_rng(seed)
    squares = source.integers(0, 256, (6, 6, 3)).repeat(16, 0).repeat(16, 1)
    noisy = squares + source.normal(0, 4, squares.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def bits(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


@given(st.integers(0, 2**32), _SIDES, _SIDES)
def test_scores_are_those_of_their_definitions(seed: int, width: int, height: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    luma = np.asarray(image.convert("L"), dtype=float)
    laplacian = scipy.ndimage.laplace(luma)[1:-1, 1:-1]
    assert sharpness(image) == pytest.approx(laplacian.var() if laplacian.size else 0, abs=1e-3)
    assert contrast(image) == pytest.approx(luma.std() / 255, abs=1e-6)
    small = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=float)
    # as imagehash.phash has it
    lowest = scipy.fft.dct(scipy.fft.dct(small, axis=0), axis=1)[:8, :8]
    ahead = np.packbits(np.round(lowest, 4) > np.median(np.round(lowest, 4)))
    assert phash(image) == ahead.tobytes().hex()


def test_scores_of_images_that_one_can_compute_in_the_head() -> None:
    blank = Image.new("RGB", (64, 64), (90, 140, 20))
    assert (sharpness(blank), contrast(blank)) == (0.0, 0.0)
    # of a blank image only the mean is above the median, on every processor
    assert phash(blank) == "8000000000000000"
    halves = Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 32)[None].repeat(64, 0)).convert("RGB")
    assert contrast(halves) == 0.5
    # of 62 inner pixels of a row one has a Laplacian of 255, and its neighbour one of -255
    assert sharpness(halves) == round(2 * 255**2 / 62, 3)


@pytest.mark.parametrize("seed", range(8))
def test_blurred_images_are_less_sharp_and_dull_ones_have_less_contrast(seed: int) -> None:
    image = scene(seed)
    blurred = [sharpness(image.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 4)]
    assert blurred == sorted(blurred, reverse=True)
    assert len(set(blurred)) == 4
    dull = [contrast(ImageEnhance.Contrast(image).enhance(factor)) for factor in (1, 0.5, 0.2, 0)]
    assert dull == sorted(dull, reverse=True)
    assert dull[-1] == 0


def test_near_duplicates_have_near_hashes_and_other_images_have_not() -> None:
    near, far = [], []
    for seed in range(16):
        image = scene(seed)
        saved = io.BytesIO()
        image.save(saved, "JPEG", quality=60)
        others = [
            Image.open(saved).convert("RGB"),
            image.resize((50, 50), Image.Resampling.BICUBIC),
            ImageEnhance.Brightness(image).enhance(0.9),
            image.filter(ImageFilter.GaussianBlur(1)),
        ]
        near += [bits(phash(image), phash(other)) for other in others]
        far += [bits(phash(image), phash(scene(other))) for other in range(seed)]
    assert max(near) <= 8
    assert min(far) > 8
