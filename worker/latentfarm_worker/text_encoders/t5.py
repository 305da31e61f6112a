"""T5's encoder (arXiv 1910.10683) as the pipelines of diffusers call it: SD3's, FLUX.1's and Chroma's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import torch

from latentfarm.job import PromptSyntax
from latentfarm_worker.host_copy import send
from latentfarm_worker.text_encoders.clip import ClipEncoder
from latentfarm_worker.text_encoders.clip import tokenize as tokenize_for_clip
from latentfarm_worker.text_encoders.prompt import TokenizedPrompt
from latentfarm_worker.text_encoders.unweighted import unweighted

#: prompts in one forward pass: with so many tokens in each, one keeps a GPU busy
_ROWS = 1


class T5Encoder:
    """One T5 encoder (transformers' T5EncoderModel) with its tokenizer.

    Args:
        longest: tokens to which a prompt is padded or cut, the end included; fewer if the tokenizer's
            ``model_max_length`` is less.
        masked: whether the padding is hidden from the other tokens. If not, it is read, and with another length each
            token would have other numbers.
        rows: prompts in one forward pass. The last group is padded with empty prompts, so a prompt's numbers depend on
            the size of the group, and not on the other prompts in it.
    """

    def __init__(self, tokenizer: Any, model: Any, *, longest: int, masked: bool = False, rows: int = _ROWS) -> None:
        self.tokenizer, self.model = tokenizer, model
        #: tokens of each prompt, the end included
        self.length = min(int(tokenizer.model_max_length), longest)
        self._masked, self._rows = masked, rows
        self._end, self._pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
        # a fast tokenizer is not thread-safe
        self._lock = Lock()

    @property
    def room(self) -> int:
        """Return the tokens of a prompt that are read."""
        return self.length - 1

    def ids(self, prompt: str) -> list[int]:
        """Return all tokens of a prompt, without the end. Thread-safe."""
        with self._lock:
            found = self.tokenizer([prompt], add_special_tokens=False, truncation=False, verbose=False)
        return list(found.input_ids[0])

    def encode(self, prompts: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        """Return the hidden states of each prompt, (length, D) in the model's dtype.

        ``prompts`` are token ids without the end, at most ``room`` each.
        """
        encoded: list[torch.Tensor] = []
        for at in range(0, len(prompts), self._rows):
            group = [*prompts[at : at + self._rows]]
            group += [()] * (self._rows - len(group))
            lines = send(torch.tensor([self._padded(ids) for ids in group]), self.model.device)
            mask = send(self._mask(group), self.model.device) if self._masked else None
            states = self.model(lines, attention_mask=mask).last_hidden_state
            encoded += states.to(self.model.dtype)
        return encoded[: len(prompts)]

    def encode_with_mask(
        self, prompts: Sequence[tuple[int, ...]], *, padding: int = 0
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the hidden states of each prompt, as ``encode``, and a mask (length,) of the same dtype.

        The mask is 1 for the prompt, its end and as many tokens of ``padding``, else 0.
        """
        places = torch.arange(self.length)
        return [
            # the end follows the ids
            (states, send((places <= len(ids) + padding).to(states.dtype), states.device))
            for ids, states in zip(prompts, self.encode(prompts), strict=True)
        ]

    def _mask(self, group: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Return which tokens each token reads, bool (rows, 1, length, length): transformers reads no number of it."""
        lengths = torch.tensor([len(ids) + 1 for ids in group])
        read = torch.arange(self.length) < lengths[:, None]
        return read[:, None, None].expand(-1, 1, self.length, self.length).contiguous()

    def _padded(self, ids: tuple[int, ...]) -> list[int]:
        return [*ids, self._end, *[self._pad] * (self.room - len(ids))]


def tokenize(clip: ClipEncoder | None, long: T5Encoder | None, prompt: str, syntax: PromptSyntax) -> TokenizedPrompt:
    """Return a prompt's tokens for CLIP and T5, each cut where it is full.

    The prompt counts as cut off if the encoder with the longest text cuts it: CLIP reads less than T5.

    Raises:
        JobError: code ``prompt_too_complex``: the prompt has weights or chunks.
    """
    text = unweighted(prompt, syntax)
    tokens = tokenize_for_clip(clip, text) if clip is not None else TokenizedPrompt(((),), count=0)
    if long is None:
        return tokens
    ids = long.ids(text)
    return replace(tokens, ids=tuple(ids[: long.room]), count=len(ids) + 1, truncated=len(ids) > long.room)
