"""Build mini's tokenizer: CLIP's byte-level BPE, its merges learned from mini's own captions.

The form is CLIP's own (lower case, ``</w>`` ends a word, 256 bytes plus 256 bytes that end a word,
then merges), so ``CLIPTokenizer`` loads it and any text at all can be encoded.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
from transformers import CLIPTokenizer

from mini_training import captions, world

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77


def byte_letters() -> dict[int, str]:
    """Return GPT-2's printable letter for each byte (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {b: chr(b) for b in plain}
    others = (b for b in range(256) if b not in letters)
    letters.update({b: chr(256 + n) for n, b in enumerate(others)})
    return letters


def _folder(where: Path, merges: list[tuple[str, str]]) -> None:
    singles = list(byte_letters().values())
    words = [*singles, *(s + "</w>" for s in singles), *(a + b for a, b in merges), START, END]
    where.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: number for number, word in enumerate(words)}
    (where / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (where / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        **special,
    }
    (where / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (where / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def _words(texts: list[str], splitter: CLIPTokenizer) -> Counter[tuple[str, ...]]:
    """Count each word, as its starting pieces.

    The unmerged tokenizer does the splitting, so that merges are learned on just the words that it
    will see later.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text, times in Counter(texts).items():
        word: list[str] = []
        for piece in splitter.tokenize(text):
            word.append(piece)
            if piece.endswith("</w>"):
                counts[tuple(word)] += times
                word = []
    return counts


def learn_merges(words: Counter[tuple[str, ...]], most: int) -> list[tuple[str, str]]:
    """Return the merges of byte-pair encoding (Sennrich et al. 2016), most frequent pair first."""
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = Counter({_merged(word, best): times for word, times in words.items()})
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)


def corpus(count: int, seed: int = 0) -> list[str]:
    """Return captions of ``count`` scenes."""
    rng = np.random.default_rng([seed, 77])
    return [captions.caption(world.training_scene(rng), rng) for _ in range(count)]


def build_tokenizer(where: Path, count: int = 6000, most: int = 600) -> CLIPTokenizer:
    """Learn the merges, write the tokenizer's folder and load it."""
    _folder(where, [])
    # Captions are longer than 77 while nothing is merged yet.
    words = _words(corpus(count), load_tokenizer(where, length=10_000))
    _folder(where, learn_merges(words, most))
    return load_tokenizer(where)


def load_tokenizer(where: Path, length: int = LENGTH) -> CLIPTokenizer:
    """Return the tokenizer of a folder, with a maximum length [default: CLIP's 77 tokens]."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(where, model_max_length=length)
    return tokenizer
