"""CLIP's tokenizer from the vocabulary in the package, for models in single files, which contain none."""

from __future__ import annotations

import gzip
from importlib.resources import files
from typing import Any

#: tokens of a prompt, start and end included
_LENGTH = 77
_START, _END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(kind: Any, *, pad: str = _END) -> Any:
    """Return a transformers CLIPTokenizer with the vocabulary of OpenAI's and OpenCLIP's text encoders.

    Args:
        kind: the class.
        pad: the token that fills a prompt: ``<|endoftext|>`` for OpenAI's, ``!`` for OpenCLIP's.
    """
    merges = _merges()
    letters = _byte_letters()
    words = ["".join(merge) for merge in merges]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *words, _START, _END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return kind(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=_LENGTH)


def _merges() -> list[tuple[str, str]]:
    packed = (files(__name__) / "merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").splitlines()
    return [(first, second) for first, second in (line.split() for line in lines)]


def _byte_letters() -> list[str]:
    """Return the letter of each byte in the order of CLIP's vocabulary: printable latin-1 first, as itself."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = len([byte for byte in range(256) if byte not in printable])
    return [chr(number) for number in (*printable, *range(256, 256 + others))]
