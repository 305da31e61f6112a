"""mini-flow's T5 tokenizer: words of the world are one token, any case means the same, and captions fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Tokenizer

from mini_training import captions
from mini_training.flow_tokenizer import FLOW_LENGTH, build_flow_tokenizer, lower_case_ids
from mini_training.tokenizer import corpus

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> T5Tokenizer:
    return build_flow_tokenizer(tmp_path_factory.mktemp("words"), count=1000)


def test_every_english_and_thai_word_is_one_token(tokenizer: T5Tokenizer) -> None:
    english = (captions.COLOUR_WORDS, captions.SHAPE_WORDS, captions.SIZE_WORDS)
    for word in (w for table in english for ws in table.values() for w in ws):
        assert tokenizer.tokenize(word) == [f"▁{word}"]
    thai = (captions.THAI_COLOURS, captions.THAI_SHAPES, captions.THAI_SIZES, captions.THAI_PLACES)
    for word in (w for table in thai for w in table.values()):
        assert tokenizer.tokenize(word)[-1] == word


def test_no_caption_is_truncated_or_has_an_unknown_piece(tokenizer: T5Tokenizer) -> None:
    for text in corpus(2000, seed=5):
        ids = tokenizer(text).input_ids
        assert len(ids) <= FLOW_LENGTH
        assert tokenizer.unk_token_id not in ids, text


def test_capital_letters_mean_the_same(tokenizer: T5Tokenizer) -> None:
    meaning = lower_case_ids(tokenizer)
    lower = tokenizer("a red circle on the left").input_ids
    for text in ("A red circle on the left", "A RED CIRCLE ON THE LEFT", "A Red Circle On The Left"):
        assert meaning[tokenizer(text).input_ids].tolist() == lower


def test_an_unknown_word_is_one_token_however_long(tokenizer: T5Tokenizer) -> None:
    unknown = tokenizer.unk_token_id
    assert tokenizer("a xylophone red circle").input_ids.count(unknown) == 1
    plural = tokenizer("red circles").input_ids
    assert plural == [*tokenizer("red circle").input_ids[:-1], unknown, tokenizer.eos_token_id]


@given(st.text(max_size=60))
def test_any_text_has_tokens_that_end_with_the_end(tokenizer: T5Tokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert all(0 <= number < len(tokenizer) for number in ids)


def test_a_saved_tokenizer_is_the_same_every_time(tmp_path: Path) -> None:
    build_flow_tokenizer(tmp_path / "a", count=200)
    build_flow_tokenizer(tmp_path / "b", count=200)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
