"""Load a tokenizer from its sub-folder, with a line for each way in which its files can be missing."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from latentfarm.errors import ModelError

#: T5's vocabulary as its authors publish it, and the packages with which transformers reads it
_SENTENCEPIECE, _READERS = "spiece.model", ("sentencepiece", "google.protobuf")


def load_tokenizer(folder: Path, part: str, kind: Any) -> Any:
    """Load the tokenizer in ``folder/part``, of the transformers class ``kind``.

    Without its vocabulary transformers would return one that knows no words, and each prompt would mean the same.

    Raises:
        ModelError: the vocabulary is missing, or in a form whose packages are not installed.
        OSError, ValueError: a file is damaged.
    """
    names = dict(kind.vocab_files_names)
    whole = names.pop("tokenizer_file")
    place = folder / part
    if not (place / whole).is_file():
        if any(not (place / name).is_file() for name in names.values()):
            raise ModelError(
                f"{place}: neither {whole} nor {' and '.join(names.values())} there; copy the tokenizer from the "
                "model's own release"
            )
        if _SENTENCEPIECE in names.values() and not _can_read_sentencepiece():
            raise ModelError(
                f"{place}: {_SENTENCEPIECE} without {whole} needs more packages: pip install "
                "'latentfarm[sentencepiece]'"
            )
    return kind.from_pretrained(folder, subfolder=part, local_files_only=True)


def _can_read_sentencepiece() -> bool:
    try:
        for name in _READERS:
            import_module(name)
    except ImportError:
        return False
    return True
