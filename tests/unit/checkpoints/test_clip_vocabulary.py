"""The tokenizer in the package gives the token ids that CLIP's text encoders were trained with."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from latentfarm_worker.checkpoints.clip_vocabulary import make_tokenizer

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # from the documentation of OpenAI's CLIP and of transformers
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("a photo of a dog", [320, 1125, 539, 320, 1929]),
        ("A diagram", [320, 22697]),
        ("", []),
    ],
)
def test_known_texts_have_the_published_ids(text: str, ids: list[int]) -> None:
    tokenizer = make_tokenizer(CLIPTokenizer)
    assert tokenizer(text).input_ids == [49406, *ids, 49407]
    assert len(tokenizer.get_vocab()) == 49408


def test_openclips_text_is_padded_with_the_first_token() -> None:
    padded = make_tokenizer(CLIPTokenizer, pad="!")("a", padding="max_length").input_ids
    assert padded == [49406, 320, 49407, *[0] * 74]


def test_any_text_is_read_back() -> None:
    tokenizer = make_tokenizer(CLIPTokenizer)
    text = "ein größerer hund, 言葉 & 🎨!"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.replace(
        " ", ""
    )
