"""Prompts to text states: CLIP's encoder exactly as StableDiffusionPipeline uses it, and a bounded cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Text:
    """One encoded prompt.

    ``states``: (77, D) in the encoder's dtype, on its device. ``truncated``: whether the prompt was longer
    than the tokenizer's 77 tokens and lost its end.
    """

    states: torch.Tensor
    truncated: bool


def encode_clip(tokenizer: Any, encoder: Any, prompt: str) -> Text:
    """Encode one prompt, padded to the tokenizer's length: StableDiffusionPipeline.encode_prompt."""
    length = tokenizer.model_max_length
    tokens = tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    whole = tokenizer([prompt], padding="longest", truncation=False, verbose=False).input_ids[0]
    masked = getattr(encoder.config, "use_attention_mask", False)
    states = encoder(
        tokens.input_ids.to(encoder.device),
        attention_mask=tokens.attention_mask.to(encoder.device) if masked else None,
    )[0]
    return Text(states[0].to(encoder.dtype), truncated=len(whole) > length)


class TextCache:
    """The most recently used texts, at most ``size``: the empty negative prompt is encoded once for all."""

    def __init__(self, encode: Callable[[str], Text], size: int = 256) -> None:
        self._encode = encode
        self._size = size
        self._texts: OrderedDict[str, Text] = OrderedDict()

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, prompt: str) -> Text:
        """Return ``prompt`` encoded, from the cache where it is there."""
        text = self._texts.get(prompt)
        if text is None:
            text = self._texts[prompt] = self._encode(prompt)
            if len(self._texts) > self._size:
                self._texts.popitem(last=False)
        self._texts.move_to_end(prompt)
        return text
