from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.image_formats import IMAGE_FORMATS
from latentfarm.storage.keys import image_key, manifest_key, parse_image_key, part_of

pytestmark = pytest.mark.unit


@given(st.integers(0, 10**8 - 2))
def test_keys_sort_in_the_order_of_their_jobs(index: int) -> None:
    assert image_key("b", index, 9) < image_key("b", index + 1, 1)
    assert f"/{part_of(index):05d}/" in image_key("b", index, 1)
    for made in IMAGE_FORMATS.values():
        assert parse_image_key(image_key("b", index, 7, made)) == (index, 7)
        assert image_key("b", index, 7, made).endswith(made.extension)
    assert manifest_key("b", part_of(index)) <= manifest_key("b", part_of(index + 1))
