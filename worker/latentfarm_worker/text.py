"""Prompts to tensors: tokens in chunks, CLIP's encoders exactly as diffusers' pipelines use them, a bounded cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch

#: what a model wants to know of one prompt, or of many with a row each, by name
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Tokens:
    """A prompt as token ids, without the start, the end and the padding that each encoder puts around a chunk.

    ``chunks``: at most 75 ids each. ``count``: tokens of the whole prompt, its start and its end among them.
    ``truncated``: whether the prompt was longer than what is encoded and lost its end.
    """

    chunks: tuple[tuple[int, ...], ...]
    count: int
    truncated: bool = False

    def padded(self, chunks: int) -> Tokens:
        """Return the same with empty chunks at its end: the two sides of guidance must be of one length."""
        return replace(self, chunks=self.chunks + ((),) * (chunks - len(self.chunks)))


@dataclass(frozen=True)
class Prompt:
    """What is encoded: equal ones give equal tensors. ``negative``: it is what a picture should not show."""

    tokens: Tokens
    negative: bool = False


class ClipEncoder:
    """One CLIP text encoder with its tokenizer.

    Chunks are encoded ``rows`` at a time, the last ones padded with empty ones: a chunk's numbers depend on the size of
    the group, but not on what else is in it.
    """

    def __init__(self, tokenizer: Any, model: Any, *, rows: int) -> None:
        self.tokenizer, self.model = tokenizer, model
        self.rows = rows
        self._start, self._end, self._pad = (
            int(number) for number in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        )
        #: tokens in a chunk, start and end among them
        self.length = int(tokenizer.model_max_length)
        self._masked = bool(getattr(model.config, "use_attention_mask", False))
        # a fast tokenizer lets one thread in
        self._lock = Lock()

    @property
    def room(self) -> int:
        """How many tokens of a prompt fit into a chunk."""
        return self.length - 2

    def ids(self, prompt: str) -> list[int]:
        """Return all tokens of a prompt, without start and end."""
        with self._lock:
            found = self.tokenizer([prompt], add_special_tokens=False, truncation=False, verbose=False)
        return list(found.input_ids[0])

    def encode(self, chunks: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        """Return the last hidden states of each chunk, (77, D)."""
        states: list[torch.Tensor] = []
        for at in range(0, len(chunks), self.rows):
            group = chunks[at : at + self.rows]
            group = [*group, *[()] * (self.rows - len(group))]
            lines = [self._padded(chunk) for chunk in group]
            mask = [[1] * (len(chunk) + 2) + [0] * (self.room - len(chunk)) for chunk in group]
            output = self.model(
                torch.tensor(lines, device=self.model.device),
                attention_mask=torch.tensor(mask, device=self.model.device) if self._masked else None,
            )[0]
            states.extend(output.to(self.model.dtype).unbind())
        return states[: len(chunks)]

    def _padded(self, chunk: tuple[int, ...]) -> list[int]:
        return [self._start, *chunk, self._end, *[self._pad] * (self.room - len(chunk))]


def plain_tokens(encoder: ClipEncoder, prompt: str) -> Tokens:
    """Return one chunk, cut off where it is full: as StableDiffusionPipeline.encode_prompt does."""
    ids = encoder.ids(prompt)
    return Tokens((tuple(ids[: encoder.room]),), count=len(ids) + 2, truncated=len(ids) > encoder.room)


class TextCache:
    """The most recently used texts, at most ``size``: the empty negative prompt is encoded once for all."""

    def __init__(self, encode: Callable[[Sequence[Prompt]], Sequence[Tensors]], size: int = 256) -> None:
        self._encode = encode
        self._size = size
        self._texts: OrderedDict[Prompt, Tensors] = OrderedDict()

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return the prompts encoded; those that are not in the cache are encoded together."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        found = {prompt: self._texts[prompt] for prompt in prompts if prompt in self._texts}
        found.update(zip(missing, self._encode(missing), strict=True) if missing else ())
        for prompt, tensors in found.items():
            self._texts[prompt] = tensors
            self._texts.move_to_end(prompt)
        while len(self._texts) > self._size:
            self._texts.popitem(last=False)
        return [found[prompt] for prompt in prompts]
