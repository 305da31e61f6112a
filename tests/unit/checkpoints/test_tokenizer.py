"""A tokenizer without its vocabulary is refused: transformers makes one that knows no words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tests.support.tiny.files import T5_VOCABULARY, write_clip_tokenizer, write_t5_tokenizer

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints.tokenizer import load_tokenizer

pytestmark = pytest.mark.unit


def test_a_tokenizer_with_its_vocabulary_loads(tmp_path: Path) -> None:
    write_t5_tokenizer(tmp_path / "tokenizer_2", length=48)
    write_clip_tokenizer(tmp_path / "tokenizer")
    assert len(load_tokenizer(tmp_path, "tokenizer_2", transformers.T5Tokenizer)) == T5_VOCABULARY
    assert len(load_tokenizer(tmp_path, "tokenizer", transformers.CLIPTokenizer)) == 514


@pytest.mark.parametrize(
    ("write", "kind", "lost", "message"),
    [
        (write_clip_tokenizer, transformers.CLIPTokenizer, "vocab.json", r"nor vocab\.json and merges\.txt there"),
        (write_clip_tokenizer, transformers.CLIPTokenizer, "merges.txt", r"nor vocab\.json and merges\.txt there"),
        (
            lambda folder: write_t5_tokenizer(folder, length=48),
            transformers.T5Tokenizer,
            "tokenizer.json",
            r"neither tokenizer\.json nor spiece\.model there; copy the tokenizer from",
        ),
    ],
)
def test_a_lost_vocabulary_is_one_line_with_the_cure(
    write: Any, kind: Any, lost: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / lost).unlink()
    with pytest.raises(ModelError, match=message):
        load_tokenizer(tmp_path, "tokenizer", kind)


def test_a_vocabulary_of_sentencepiece_needs_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_t5_tokenizer(tmp_path / "tokenizer", length=48)
    (tmp_path / "tokenizer" / "tokenizer.json").rename(tmp_path / "tokenizer" / "spiece.model")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModelError, match=r"needs more packages: pip install 'latentfarm\[sentencepiece\]'"):
        load_tokenizer(tmp_path, "tokenizer", transformers.T5Tokenizer)
