"""The tokenizer: few pieces per word, 77 tokens, everything can be spelled."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from mini_training import captions
from mini_training.tokenizer import END, START, build_tokenizer, byte_letters, corpus, learn_merges, load_tokenizer

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return build_tokenizer(tmp_path_factory.mktemp("words"), count=2500)


def _pieces(tokenizer: CLIPTokenizer, text: str) -> int:
    return len(tokenizer(text).input_ids) - 2


def test_captions_fit_into_77_tokens(tokenizer: CLIPTokenizer) -> None:
    assert max(len(tokenizer(text).input_ids) for text in corpus(400, seed=9)) <= 50
    assert tokenizer.model_max_length == 77


@pytest.mark.parametrize(
    "word",
    [
        *(w for ws in captions.COLOUR_WORDS.values() for w in ws),
        *(w for ws in captions.SHAPE_WORDS.values() for w in ws),
        *(w for ws in captions.SIZE_WORDS.values() for w in ws),
        *("left", "right", "top", "bottom", "centre", "background", "on", "and"),
    ],
)
def test_each_english_concept_is_one_token(tokenizer: CLIPTokenizer, word: str) -> None:
    assert _pieces(tokenizer, word) == 1


@pytest.mark.parametrize("word", [*captions.THAI_COLOURS.values(), *captions.THAI_SHAPES.values()])
def test_each_thai_concept_is_a_few_tokens(tokenizer: CLIPTokenizer, word: str) -> None:
    # CLIP splits Thai at its vowel signs, which are marks and not letters.
    assert _pieces(tokenizer, word) <= 8


@pytest.mark.parametrize("text", ["a red circle", "วงกลมสีแดง", "สี่เหลี่ยมสีน้ำเงิน", "zebra 42 é"])
def test_text_survives_the_round_trip(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    back = tokenizer.decode(ids, skip_special_tokens=True)
    assert back.replace(" ", "") == text.replace(" ", "")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_encodes_to_77_known_ids(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
    assert len(ids) == 77
    assert 0 <= min(ids) <= max(ids) < len(tokenizer)


def test_case_does_not_matter(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer("A RED Circle").input_ids == tokenizer("a red circle").input_ids


def test_building_twice_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_tokenizer(tmp_path / name, count=50)
    for file in ("vocab.json", "merges.txt"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_loaded_tokenizer_equals_the_built_one(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    built = build_tokenizer(tmp_path, count=80)
    assert load_tokenizer(tmp_path)("a red ring").input_ids == built("a red ring").input_ids
    words = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(words.values()) == list(range(len(words)))
    assert {START, END} <= set(words)
    assert len(tokenizer) >= len(words)


def test_every_byte_has_its_own_letter() -> None:
    letters = byte_letters()
    assert sorted(letters) == list(range(256))
    assert len(set(letters.values())) == 256


def test_the_commonest_pair_is_merged_first() -> None:
    words = Counter({("a", "b", "c</w>"): 5, ("b", "c</w>"): 3, ("a", "x</w>"): 1})
    assert learn_merges(words, 2) == [("b", "c</w>"), ("a", "bc</w>")]


def test_captions_of_one_seed_are_the_same() -> None:
    assert corpus(20, seed=3) == corpus(20, seed=3)
    assert corpus(20, seed=3) != corpus(20, seed=4)
    assert np.mean([len(t) for t in corpus(100)]) > 20
