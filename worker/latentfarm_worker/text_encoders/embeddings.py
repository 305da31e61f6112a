"""Textual inversion (arXiv 2208.01618): vectors under a name, which stand in prompts in the place of words.

A file has the vectors of each text encoder: ``emb_params`` (n, D) as AUTOMATIC1111's web UI writes them, ``clip_l`` and
``clip_g`` (n, D1) and (n, D2) of a model with two encoders, or one tensor (D,) or (n, D) under the name of its token,
as diffusers writes it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from latentfarm.adapter_kind import AdapterKind
from latentfarm.errors import JobError
from latentfarm.job import PromptSyntax

#: the names of the tensors by text encoder, in a file for a model with two of them
_OF_TWO = ("clip_l", "clip_g")
#: embeddings that stay in host memory; one has 10 to 500 KB
_MAX_KEPT = 256


class EmbeddingFile(Protocol):
    """The file of an embedding: where it is, and the sha256 of its bytes."""

    @property
    def path(self) -> Path:
        """The file on this machine."""

    @property
    def digest(self) -> str:
        """The sha256 of the file."""


class EmbeddingCatalogue(Protocol):
    """The operator's adapters, as ``adapters.catalogue.Catalogue``. Thread-safe."""

    def names(self, kind: AdapterKind) -> tuple[str, ...]:
        """Return the aliases of a kind."""

    def get(self, kind: AdapterKind, alias: str) -> EmbeddingFile:
        """Return an adapter, which is fetched if it is not here.

        Raises:
            JobError: it cannot be used.
        """


class Embedding:
    """The vectors of an embedding, on the host. Embeddings of the same file are equal, and have the same numbers.

    Attributes:
        alias: its name in prompts.
        digest: the sha256 of its file.
        vectors: by text encoder, (n, D) in the file's dtype.
    """

    def __init__(self, alias: str, digest: str, vectors: tuple[torch.Tensor, ...]) -> None:
        self.alias, self.digest, self.vectors = alias, digest, vectors

    def __len__(self) -> int:
        return len(self.vectors[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Embedding) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __deepcopy__(self, _memo: Any) -> Embedding:
        # it never changes
        return self


class Embeddings:
    """The embeddings that the prompts of one model may name. Thread-safe.

    Args:
        catalogue: has their files.
        widths: by text encoder, the numbers of a token's vector; empty if the model takes no embeddings.
        model: the model's name, for errors.
    """

    def __init__(self, catalogue: EmbeddingCatalogue, widths: Sequence[int], *, model: str) -> None:
        self._catalogue, self._widths, self._model = catalogue, tuple(widths), model
        self._kept: OrderedDict[tuple[str, str], Embedding] = OrderedDict()
        self._lock = Lock()

    def split(self, text: str, syntax: PromptSyntax = "plain") -> list[str | Embedding]:
        """Return a prompt as texts, without empty ones, and embeddings.

        ``<alias>`` is an embedding; in the syntax ``a1111`` so is the alias as a word of its own. Upper and lower case
        are the same, as they are to CLIP's tokenizer. A name in angle brackets that is no alias is text.

        Raises:
            JobError: code ``adapter_mismatch`` for an embedding of another kind of model, ``adapter_invalid`` for a
                file that cannot be read, or what the catalogue raises.
        """
        names = self._catalogue.names(AdapterKind.EMBEDDING)
        if not names:
            return [text] if text else []
        # a model without embeddings has no error for a word that is someone's alias
        pattern = _pattern(names, words=syntax == "a1111" and bool(self._widths))
        return [*self._split(text, pattern, names)]

    def _split(self, text: str, pattern: re.Pattern[str], names: Sequence[str]) -> Iterator[str | Embedding]:
        at = 0
        for found in pattern.finditer(text):
            if found.start() > at:
                yield text[at : found.start()]
            yield self._get(_alias_of(found["marked"] or found["word"], names))
            at = found.end()
        if at < len(text):
            yield text[at:]

    def _get(self, alias: str) -> Embedding:
        if not self._widths:
            raise JobError(
                "adapter_mismatch",
                f"<{alias}> is an embedding, and {self._model} takes none; use a stable diffusion 1.x, 2.x or XL model "
                "for it",
            )
        file = self._catalogue.get(AdapterKind.EMBEDDING, alias)
        key = alias, file.digest
        with self._lock:
            if key not in self._kept:
                self._kept[key] = Embedding(alias, file.digest, _read(alias, file.path, self._widths, self._model))
            self._kept.move_to_end(key)
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]


@lru_cache(8)
def _pattern(names: tuple[str, ...], *, words: bool) -> re.Pattern[str]:
    """Return what finds aliases in a prompt, the longest one at each place."""
    aliases = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    word = rf"|(?<!\w)(?P<word>{aliases})(?!\w)" if words else "|(?P<word>(?!))"
    return re.compile(rf"<(?P<marked>{aliases})>{word}", re.IGNORECASE)


def _alias_of(written: str, names: Sequence[str]) -> str:
    """Return the alias that was found; of two that differ in case only, the one that is written."""
    if written in names:
        return written
    return next(name for name in names if re.fullmatch(re.escape(name), written, re.IGNORECASE))


def _read(alias: str, path: Path, widths: tuple[int, ...], model: str) -> tuple[torch.Tensor, ...]:
    """Return the vectors of a file by text encoder, (n, D) each."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise JobError("adapter_invalid", f"embedding {alias}: {path.name} cannot be read: {error}") from error
    names = _OF_TWO if tensors.keys() >= {*_OF_TWO} else tuple(tensors)
    vectors = tuple(tensor[None] if tensor.ndim == 1 else tensor for tensor in map(tensors.__getitem__, names))
    for name, each in zip(names, vectors, strict=True):
        if each.ndim != 2 or not each.is_floating_point() or not torch.isfinite(each).all():
            raise JobError(
                "adapter_invalid",
                f"embedding {alias}: {name} in {path.name} is {tuple(each.shape)} of {each.dtype}; vectors are finite "
                "numbers, one row each",
            )
    found = tuple(each.shape[1] for each in vectors)
    if found != widths:
        raise JobError(
            "adapter_mismatch",
            f"embedding {alias} has vectors of {_listed(found)} numbers, and the text encoders of {model} take "
            f"{_listed(widths)}; use an embedding of this kind of model",
        )
    if len({len(each) for each in vectors}) > 1:
        raise JobError(
            "adapter_invalid",
            f"embedding {alias}: {path.name} has {_listed([len(each) for each in vectors])} vectors for the text "
            "encoders; export it with as many for each",
        )
    return vectors


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
