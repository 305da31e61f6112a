"""Bodies of requests for images: valid, invalid and hostile ones."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from latentfarm.server.http.request_error import RequestError
from latentfarm.server.openai.image_request import ImageRequest, read_image_request
from latentfarm.server.openai.shapes import ImageBody
from latentfarm.server.openai.usage import usage_of
from latentfarm.submission.prompts.aliases import FIELD_ALIASES, PASSED_ALIASES
from latentfarm.submission.prompts.columns import FIELDS

pytestmark = pytest.mark.unit

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
NAMES = sorted(
    {*ImageBody.model_fields, *FIELDS, *(name for each in FIELD_ALIASES + PASSED_ALIASES for name in each.names)}
)


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), VALUES, max_size=6) | VALUES)
def test_any_json_is_a_request_or_an_error_for_the_client(body: Any) -> None:
    if isinstance(body, dict) and len(body) % 2:
        body = {"prompt": "a cat", **body}
    with suppress(ValidationError, RequestError):
        assert isinstance(read_image_request(body), ImageRequest)


def test_fields_without_meaning_are_accepted_and_those_of_diffusers_read() -> None:
    body = {
        "prompt": "a cat",
        "model": "dall-e-3",
        "size": "auto",
        "quality": "standard",
        "style": "vivid",
        "background": "transparent",
        "moderation": "low",
        "output_format": "jpg",
        "output_compression": 90,
        "user": "7",
        "safety_identifier": "7",
        "complexity": "high",
        "partial_images": 2,
        "metadata": {"a": "b"},
        "mask": None,
        "negative_prompt": "a dog",
        "num_inference_steps": 10,
        "guidance_scale": 2,
        "seed": -1,
        "scheduler": "dpmpp_2m_karras",
    }
    found = read_image_request(body)
    assert (found.model, found.by_url, found.stream, found.partial_images) == ("dall-e-3", False, False, 0)
    assert found.row == {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "num_inference_steps": 10,
        "guidance_scale": 2.0,
        "scheduler": "dpm++2m-karras",
        "image_format": "jpeg",
    }
    assert "'background' is passed over: it has no effect on the image here" in found.notes
    assert not any("size" in note for note in found.notes)
    assert read_image_request({"prompt": "a cat", "n": 2, "size": "64x64", "seed": 7}).notes == ()
    assert read_image_request({**body, "stream": True}).partial_images == 2
    assert read_image_request({**body, "response_format": "url", "n": 10}).by_url


def test_several_errors_of_a_body_are_one_line() -> None:
    with pytest.raises(RequestError) as refused:
        read_image_request({"prompt": "a cat", "width": 1, "height": 2})
    assert "\n" not in refused.value.message
    assert refused.value.message.count("is out of range") == 2
    assert refused.value.param == "width"


def test_usage_counts_the_prompt_once_and_each_image() -> None:
    result = {"request": {"width": 512, "height": 768}, "tokens": 12}
    usage = usage_of([result, result])
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (12, 2 * 64 * 96, 12 + 2 * 64 * 96)
    assert usage_of([{"request": {"width": 64, "height": 64}}]).input_tokens == 0
