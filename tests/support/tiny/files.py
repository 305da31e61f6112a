"""Write the files that all tiny models have: JSON, tokenizers and indexes, each without a download."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIFFUSERS_VERSION = "0.42.1"
#: tokens of a CLIP tokenizer of ``write_clip_tokenizer``: 256 bytes, within and at the end of a word, start and end
CLIP_VOCABULARY = 514
#: the characters that a T5 tokenizer of ``write_t5_tokenizer`` knows; each is a token
_T5_LETTERS = "▁" + "".join(map(chr, range(33, 127))) + "äöüßÄÖÜéèñç言葉色絵กขคงจ"
#: tokens of it: padding, end, unknown, and the letters
T5_VOCABULARY = 3 + len(_T5_LETTERS)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON that is the same each time."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_index(folder: Path, pipeline: str, parts: Mapping[str, Any]) -> None:
    """Write model_index.json. ``parts``: by sub-folder the library and class, or a setting of the pipeline."""
    write_json(folder / "model_index.json", {"_class_name": pipeline, "_diffusers_version": DIFFUSERS_VERSION, **parts})


def write_scheduler(folder: Path, class_name: str, options: Mapping[str, Any]) -> list[str]:
    """Write the scheduler's config in its sub-folder; return its entry of model_index.json."""
    (folder / "scheduler").mkdir()
    config = {"_class_name": class_name, "_diffusers_version": DIFFUSERS_VERSION, **options}
    write_json(folder / "scheduler" / "scheduler_config.json", config)
    return ["diffusers", class_name]


def write_clip_tokenizer(folder: Path, *, pad: str = "<|endoftext|>") -> None:
    """Write a byte-level CLIP vocabulary: each byte, within and at the end of a word, no merges."""
    folder.mkdir()
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    specials = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": pad,
                "unk_token": "<|endoftext|>"}  # fmt: skip
    write_json(folder / "special_tokens_map.json", specials)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "errors": "replace",
    }
    write_json(folder / "tokenizer_config.json", {**settings, **specials})


def _byte_letters() -> list[str]:
    # GPT-2's and CLIP's table: printable latin-1 maps to itself, the other bytes to letters from 256 on
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def write_t5_tokenizer(folder: Path, *, length: int) -> None:
    """Write a T5 vocabulary of single letters, whose ``model_max_length`` is ``length``."""
    import transformers

    # T5's order: padding 0, end 1, unknown 2
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in _T5_LETTERS)]
    tokenizer = transformers.T5Tokenizer(
        vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=length
    )
    tokenizer.save_pretrained(folder)
