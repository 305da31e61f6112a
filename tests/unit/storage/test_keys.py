from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.image_formats import IMAGE_FORMATS
from latentfarm.storage.keys import (
    image_key,
    manifest_key,
    parse_image_key,
    parse_picks_key,
    parse_results_key,
    part_of,
    picks_key,
    picks_prefix,
    results_key,
    results_prefix,
)

pytestmark = pytest.mark.unit


@given(st.integers(0, 10**8 - 2))
def test_keys_sort_in_the_order_of_their_jobs(index: int) -> None:
    assert image_key("b", index, 9) < image_key("b", index + 1, 1)
    assert f"/{part_of(index):05d}/" in image_key("b", index, 1)
    for made in IMAGE_FORMATS.values():
        assert parse_image_key(image_key("b", index, 7, made)) == (index, 7)
        assert image_key("b", index, 7, made).endswith(made.extension)
    assert manifest_key("b", part_of(index)) <= manifest_key("b", part_of(index + 1))


@given(st.integers(0, 10**6), st.integers(0, 2**53))
def test_the_key_of_results_has_their_part_and_generation(part: int, generation: int) -> None:
    key = results_key("b", part, generation)
    assert parse_results_key(key) == (part, generation)
    assert key.startswith(results_prefix("b", part))
    assert key.startswith(results_prefix("b"))
    # no prefix of a part is one of another part
    assert not results_key("b", 10 * part + 1, generation).startswith(results_prefix("b", part))


@pytest.mark.parametrize(
    "name", ["part-00000.jsonl", "part-00000.0.jsonl.gz", "part-00000.-1.jsonl.gz", "part-0.jsonl.gz", "x.jsonl.gz"]
)
def test_other_keys_below_results_are_not_parts(name: str) -> None:
    assert results_key("b", 0) == "batches/b/results/part-00000.jsonl.gz"
    assert parse_results_key(f"batches/b/results/{name}") is None


@given(st.integers(0, 2**60), st.integers(0, 10**6))
def test_the_key_of_picks_has_their_number_of_images(at_us: int, images: int) -> None:
    key = picks_key("b", at_us, "0123456789abcdef", images)
    assert parse_picks_key(key) == images
    assert key.startswith(picks_prefix("b"))
    assert (parse_image_key(key), parse_results_key(key)) == (None, None)
    assert parse_picks_key(key + ".bak") is None
