"""Prompts to tensors: tokens in chunks, CLIP's encoders exactly as diffusers' pipelines use them, a bounded cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from threading import Lock
from typing import Any, NamedTuple

import torch

from latentfarm.errors import JobError
from latentfarm.job import PromptSyntax
from latentfarm_worker.models.prompt_weights import WeighedToken, chunked, parse

#: chunks of a prompt; 4,096 bytes of text come near it only with BREAKs
MAX_CHUNKS = 64
#: a word's weight, either sign; beyond it numbers overflow before they mean anything
MAX_WEIGHT = 100.0

#: what a model wants to know of one prompt, or of many with a row each, by name
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as token ids, without the start, the end and the padding that each encoder puts around a chunk.

    ``chunks``: at most 75 ids each. ``count``: tokens of the whole prompt, its start and its end among them.
    ``truncated``: whether the prompt was longer than what is encoded and lost its end. ``weights``: of each chunk what
    its tokens' states are multiplied by; nothing where they are all left as they are.
    """

    chunks: tuple[tuple[int, ...], ...]
    count: int
    truncated: bool = False
    weights: tuple[tuple[float, ...], ...] = ()

    def weighed_chunks(self) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
        """Yield each chunk with its weights, which may be none."""
        return zip_longest(self.chunks, self.weights, fillvalue=())

    def padded(self, chunks: int) -> TokenizedPrompt:
        """Return the same with empty chunks at its end: the two sides of guidance must be of one length."""
        return replace(self, chunks=self.chunks + ((),) * (chunks - len(self.chunks)))


@dataclass(frozen=True)
class Prompt:
    """What is encoded: equal ones give equal tensors.

    ``negative``: it is what a picture should not show. ``clip_skip``: layers left out at the encoder's end.
    """

    tokens: TokenizedPrompt
    negative: bool = False
    clip_skip: int = 0


class TextEmbedding(NamedTuple):
    """Hidden ``states`` (77 x chunks, D) and, of an encoder with a projection, the ``projected`` whole (P,).

    The whole is that of the first chunk, as AUTOMATIC1111 has it.
    """

    states: torch.Tensor
    projected: torch.Tensor | None


class ClipEncoder:
    """One CLIP text encoder with its tokenizer.

    ``layer``: whose hidden states are taken as they leave it, counted from the end; None: the last, normed.

    Chunks are encoded ``rows`` at a time, the last ones padded with empty ones: a chunk's numbers depend on the size of
    the group, but not on what else is in it.
    """

    def __init__(self, tokenizer: Any, model: Any, *, rows: int, layer: int | None = None) -> None:
        self.tokenizer, self.model = tokenizer, model
        self.rows, self.layer = rows, layer
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

    @cached_property
    def comma(self) -> int | None:
        """The id of a comma on its own."""
        return self.tokenizer.get_vocab().get(",</w>")  # type: ignore[no-any-return]

    @property
    def max_clip_skip(self) -> int:
        """How many layers can be left out: the first one stays."""
        return int(self.model.config.num_hidden_layers) + (self.layer or -1)

    def encode(self, prompts: Sequence[Prompt]) -> list[TextEmbedding]:
        """Return each prompt in numbers, every chunk's states weighed for themselves."""
        encoded = iter(self._chunks([(ids, each.clip_skip) for each in prompts for ids in each.tokens.chunks]))
        texts = []
        for each in prompts:
            chunks = [(next(encoded), weights) for _, weights in each.tokens.weighed_chunks()]
            states = torch.cat([_weighed(chunk.states, weights) for chunk, weights in chunks])
            texts.append(TextEmbedding(states, chunks[0][0].projected))
        return texts

    def _chunks(self, chunks: Sequence[tuple[tuple[int, ...], int]]) -> list[TextEmbedding]:
        """Return each chunk in numbers, without so many of the last layers."""
        encoded: list[TextEmbedding] = []
        for at in range(0, len(chunks), self.rows):
            group = [*chunks[at : at + self.rows]]
            group += [((), 0)] * (self.rows - len(group))
            lines = [self._padded(ids) for ids, _ in group]
            mask = [[1] * (len(ids) + 2) + [0] * (self.room - len(ids)) for ids, _ in group]
            output = self.model(
                torch.tensor(lines, device=self.model.device),
                attention_mask=torch.tensor(mask, device=self.model.device) if self._masked else None,
                output_hidden_states=self.layer is not None or any(skipped for _, skipped in group),
            )
            projected = output.get("text_embeds")
            encoded += [
                TextEmbedding(self._picked(output, row, skipped), None if projected is None else projected[row])
                for row, (_, skipped) in enumerate(group)
            ]
        return encoded[: len(chunks)]

    def _picked(self, output: Any, row: int, skipped: int) -> torch.Tensor:
        """Return the states of the layer, or those of an earlier one, with the last one's norm if ours has it.

        As StableDiffusionPipeline and StableDiffusionXLPipeline.
        """
        if self.layer is not None:
            states = output.hidden_states[self.layer - skipped][row]
        elif skipped:
            states = self.model.final_layer_norm(output.hidden_states[-1 - skipped][row])
        else:
            states = output.last_hidden_state[row]
        return states.to(self.model.dtype)  # type: ignore[no-any-return]

    def _padded(self, chunk: tuple[int, ...]) -> list[int]:
        return [self._start, *chunk, self._end, *[self._pad] * (self.room - len(chunk))]


def _weighed(states: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """Return a chunk's states (77, D) times its tokens' weights, brought back to their mean.

    As ``EmphasisOriginal`` in modules/sd_emphasis.py of AUTOMATIC1111/stable-diffusion-webui does for one prompt.
    """
    if not weights:
        return states
    factors = torch.ones(len(states), 1)
    factors[1 : 1 + len(weights), 0] = torch.tensor(weights)
    weighed = states.float() * factors.to(states.device)
    return (weighed * (states.float().mean() / weighed.mean())).to(states.dtype)


def tokens_of(encoder: ClipEncoder, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
    """Return a prompt's tokens.

    ``plain``: one chunk, cut off where it is full, as StableDiffusionPipeline.encode_prompt does. ``a1111``: all of
    them, weighed, in as many chunks as they need.

    Raises:
        JobError: code ``prompt``: a weight or the number of chunks is beyond all sense.

    """
    if syntax == "a1111":
        return _a1111_tokens(encoder, prompt)
    ids = encoder.ids(prompt)
    return TokenizedPrompt((tuple(ids[: encoder.room]),), count=len(ids) + 2, truncated=len(ids) > encoder.room)


def _a1111_tokens(encoder: ClipEncoder, prompt: str) -> TokenizedPrompt:
    sections = parse(prompt)
    for piece in (piece for section in sections for piece in section):
        if not abs(piece.weight) <= MAX_WEIGHT:
            raise JobError(
                "prompt",
                f"prompt {piece.text[:40]!r} has the weight {piece.weight:g}; keep it within {MAX_WEIGHT:g}, or write "
                "\\( for a bracket that is text",
            )
    chunks = chunked(
        [[WeighedToken(number, weight) for text, weight in section for number in encoder.ids(text)]
         for section in sections],
        room=encoder.room,
        comma=encoder.comma,
    )  # fmt: skip
    if len(chunks) > MAX_CHUNKS:
        raise JobError("prompt", f"prompt has {len(chunks)} chunks of {encoder.room} tokens; keep to {MAX_CHUNKS}")
    weights = [tuple(token.weight for token in chunk) for chunk in chunks]
    weights = [each if any(weight != 1.0 for weight in each) else () for each in weights]
    return TokenizedPrompt(
        tuple(tuple(token.number for token in chunk) for chunk in chunks),
        count=sum(map(len, chunks)) + 2,
        # without any weight it is what the plain prompt is
        weights=tuple(weights) if any(weights) else (),
    )
