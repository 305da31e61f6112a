"""A prompt as tokens, the input of a family's text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import NamedTuple

import torch

from latentfarm_worker.text_encoders.embeddings import Embedding

#: conditioning tensors by name: of one prompt, or of many with a row each
Tensors = Mapping[str, torch.Tensor]
#: the number in ``chunks`` of the first vector of a prompt's embeddings, greater than any token's id
FIRST_VECTOR = 2**24


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as token ids, without the start, end and padding tokens that an encoder adds.

    Attributes:
        chunks: the ids for CLIP, at most 75 each; one empty chunk if the model has no CLIP encoder. A vector of an
            embedding has the number ``FIRST_VECTOR`` + k, or -1 - k in the syntax ``a1111``: it is the k-th one of all
            ``embeddings``.
        count: tokens of the whole prompt, start and end included.
        truncated: whether the end of the prompt was cut off.
        weights: by chunk, a factor for each token's hidden states; an empty tuple means all 1.
        ids: the ids for a language model such as T5 or Qwen3; empty if the model has none.
        ids_length: tokens to which ``ids`` are padded; 0 if the family pads all prompts to one length.
        embeddings: the embeddings that the prompt names, each once, in the order of their first place.
    """

    chunks: tuple[tuple[int, ...], ...]
    count: int
    truncated: bool = False
    weights: tuple[tuple[float, ...], ...] = ()
    ids: tuple[int, ...] = ()
    ids_length: int = 0
    embeddings: tuple[Embedding, ...] = ()

    @property
    def text_class(self) -> int:
        """Return a number that prompts with conditioning of one shape share: chunks, or padded tokens."""
        return self.ids_length or len(self.chunks)

    def padded(self, text_class: int) -> TokenizedPrompt:
        """Return the prompt padded to a larger class: prompt and negative prompt must have the same."""
        if self.ids_length:
            return replace(self, ids_length=text_class)
        return replace(self, chunks=self.chunks + ((),) * (text_class - len(self.chunks)))

    def weighted_chunks(self) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
        """Yield each chunk with its weights, which may be empty."""
        return zip_longest(self.chunks, self.weights, fillvalue=())


class PromptLora(NamedTuple):
    """A LoRA that changes the text encoders: the sha256 of its file, and its scale."""

    digest: str
    scale: float


@dataclass(frozen=True)
class Prompt:
    """The input of ``Family.encode``; equal prompts give equal tensors.

    ``negative``: it is a negative prompt. ``clip_skip``: layers to skip at the end of the text encoder. ``loras``:
    those with which it is encoded.
    """

    tokens: TokenizedPrompt
    negative: bool = False
    clip_skip: int = 0
    loras: tuple[PromptLora, ...] = ()
