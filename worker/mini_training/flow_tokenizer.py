"""Build mini-flow's second tokenizer: T5's unigram form, its pieces the words of mini's captions.

Whole words are one token, so that a caption fits 32 tokens. All other letters, however many, are one unknown token.
T5's tokenizer keeps case, so each word has a capitalized and an upper-case form; ``lower_case_ids`` names which piece
they mean.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

import torch
from transformers import T5Tokenizer

from mini_training import captions
from mini_training.tokenizer import corpus

FLOW_LENGTH = 32
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPACE = "▁"
# A space or a mark alone costs more than any word that contains it.
MARK_SCORE = -10.0
MARKS = (SPACE, ".", ",")
_THAI_TABLES = (captions.THAI_COLOURS, captions.THAI_SHAPES, captions.THAI_SIZES, captions.THAI_PLACES)
_THAI_WORDS = [word for table in _THAI_TABLES for word in table.values()] + ["ขนาด", "และ", "อยู่", "บน", "พื้นหลัง"]


def word_counts(texts: list[str]) -> Counter[str]:
    """Count the words of captions: English words with the mark of a space before them, Thai words without."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(SPACE + word for word in re.findall(r"[a-z]+", text))
    joined = " ".join(texts)
    counts.update({word: max(1, joined.count(word)) for word in _THAI_WORDS})
    return counts


def _cases(word: str) -> list[str]:
    """Return a word's other cases: 'red' gives 'Red' and 'RED', Thai words nothing."""
    start, bare = word[: word.startswith(SPACE)], word.removeprefix(SPACE)
    return [start + form for form in dict.fromkeys((bare.capitalize(), bare.upper())) if form != bare]


def pieces(counts: Counter[str]) -> list[tuple[str, float]]:
    """Return T5's vocabulary with scores: pad, end, unknown, space and marks, then words by frequency."""
    total = sum(counts.values())
    scores = dict.fromkeys(MARKS, MARK_SCORE)
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        for form in (word, *_cases(word)):
            scores.setdefault(form, math.log(counts[word] / total))
    return [(PAD, 0.0), (END, 0.0), (UNKNOWN, 0.0), *scores.items()]


def build_flow_tokenizer(where: Path, count: int = 6000) -> T5Tokenizer:
    """Count the words of ``count`` captions, write the tokenizer's folder and load it."""
    tokenizer = T5Tokenizer(
        vocab=pieces(word_counts(corpus(count))),
        extra_ids=0,
        additional_special_tokens=[],
        model_max_length=FLOW_LENGTH,
    )
    tokenizer.save_pretrained(where)
    path = where / "tokenizer.json"
    # Indentation is more than half of the file.
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False), encoding="utf-8")
    return load_flow_tokenizer(where)


def load_flow_tokenizer(where: Path) -> T5Tokenizer:
    """Return the tokenizer of a folder."""
    tokenizer: T5Tokenizer = T5Tokenizer.from_pretrained(where)
    return tokenizer


def lower_case_ids(tokenizer: T5Tokenizer) -> torch.Tensor:
    """Return by token id the id of its lower-case form, (vocabulary,); captions have no other."""
    known = tokenizer.get_vocab()
    ids = torch.arange(len(tokenizer))
    for piece, number in known.items():
        ids[number] = known.get(piece.lower(), number)
    return ids
