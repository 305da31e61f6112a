"""A preview has few bytes, of any image."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from latentfarm_worker.service.slot_reporter import encode_preview

pytestmark = pytest.mark.unit


@settings(deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), limit=st.integers(900, 4_000), seed=st.integers(0, 2**32))
def test_a_preview_of_noise_keeps_its_shape_and_its_limit(height: int, width: int, limit: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    body = encode_preview(pixels, limit)
    found = simplejpeg.decode_jpeg(body)
    halvings = round(np.log2(max(height, width) / max(found.shape[:2])))
    assert found.shape == (-(-height // 2**halvings), -(-width // 2**halvings), 3)
    # an image of 8 lines cannot be smaller
    assert len(body) <= limit or min(found.shape[:2]) < 16


def test_a_preview_of_an_image_of_64_pixels_has_all_of_them() -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(80)), axis=2)
    body = encode_preview(np.ascontiguousarray(pixels), 4_000)
    assert simplejpeg.decode_jpeg(body).shape == (64, 64, 3)
    assert len(body) < 2_500
