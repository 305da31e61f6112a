"""Qwen3 (arXiv 2505.09388) as a text encoder, as diffusers' Flux2KleinPipeline and ZImagePipeline call it."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch

from latentfarm.errors import ModelError
from latentfarm_worker.host_copy import send
from latentfarm_worker.text_encoders.prompt import TokenizedPrompt

#: tokens of a prompt with its chat template, the pipelines' ``max_sequence_length``
MAX_TOKENS = 512


class ChatTokenizer:
    """A tokenizer that takes a prompt as the user's message of a chat. Thread-safe.

    Args:
        tokenizer: transformers' Qwen2Tokenizer, with a chat template.
        thinking: whether the template leaves the model room to think before its answer.
    """

    def __init__(self, tokenizer: Any, *, thinking: bool) -> None:
        self._tokenizer, self._thinking = tokenizer, thinking
        # a fast tokenizer is not thread-safe
        self._lock = Lock()

    def ids(self, prompt: str) -> list[int]:
        """Return all tokens of a prompt, those of the chat template included."""
        with self._lock:
            text = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=self._thinking,
            )
            found = self._tokenizer([text], truncation=False, verbose=False)
        return list(found.input_ids[0])

    def count(self, prompt: str) -> int:
        """Return the number of tokens of a prompt, those of the chat template included."""
        return len(self.ids(prompt))


class Qwen3Encoder:
    """One Qwen3 model (transformers' Qwen3Model) with its tokenizer. A prompt is the user's message of a chat.

    Each prompt is encoded by itself: a model of billions of parameters is busy with one, and its numbers depend on no
    other.

    Args:
        layers: the layers whose hidden states are concatenated; 0 are the embedded tokens.
        thinking: whether the chat template leaves the model room to think before its answer.
        shortest: a prompt is padded to so many tokens, or to twice, four times as many, and so on. So there are few
            classes, and images of many prompts share a step; 0: each prompt is padded to ``length``.

    Raises:
        ModelError: the tokenizer pads on the left or has no chat template, or some layers have a sliding window.
    """

    def __init__(self, tokenizer: Any, model: Any, *, layers: Sequence[int], thinking: bool, shortest: int = 0) -> None:
        if tokenizer.padding_side != "right" or not tokenizer.chat_template:
            raise ModelError(
                "tokenizer: it pads on the left or has no chat template; use the one of the model's folder"
            )
        if {*model.config.layer_types} != {"full_attention"}:
            raise ModelError("text_encoder: some layers have a sliding window; use the Qwen3 of the model's folder")
        self.model = model
        self.layers = tuple(layers)
        #: tokens after which a prompt is cut
        self.length = min(MAX_TOKENS, int(tokenizer.model_max_length))
        self._shortest = shortest
        self._pad = int(tokenizer.pad_token_id)
        self._tokenizer = ChatTokenizer(tokenizer, thinking=thinking)

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Return a prompt's tokens, those of the chat template included. Thread-safe."""
        ids = self._tokenizer.ids(prompt)
        kept = tuple(ids[: self.length])
        return TokenizedPrompt(
            ((),),
            count=len(ids),
            truncated=len(ids) > self.length,
            ids=kept,
            ids_length=self._padded_length(kept) if self._shortest else 0,
        )

    def encode(self, prompt: TokenizedPrompt) -> torch.Tensor:
        """Return the hidden states of a prompt, (L, D x layers) in the model's dtype.

        L is that of the prompt's own class, which may be less than ``ids_length``.
        """
        length = self._padded_length(prompt.ids)
        ids = torch.tensor([*prompt.ids, *[self._pad] * (length - len(prompt.ids))])
        # each token reads itself and those before it, and none reads the padding. Given as it is used, transformers
        # does not read it: that would wait for the device
        mask = torch.ones(length, length, dtype=torch.bool).tril() & (torch.arange(length) < len(prompt.ids))
        output = self.model(
            input_ids=send(ids[None], self.model.device),
            attention_mask={"full_attention": send(mask[None, None], self.model.device)},
            output_hidden_states=True,
            use_cache=False,
        )
        states = torch.cat([output.hidden_states[layer] for layer in self.layers], dim=-1)
        return states[0].to(self.model.dtype)

    def _padded_length(self, ids: tuple[int, ...]) -> int:
        if not self._shortest:
            return self.length
        length = self._shortest
        while length < len(ids):
            length *= 2
        return min(length, -(-self.length // self._shortest) * self._shortest)
