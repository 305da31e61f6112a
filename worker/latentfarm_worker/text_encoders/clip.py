"""CLIP's text encoders as diffusers' pipelines call them, with prompts of several weighted chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple

import torch

from latentfarm.errors import JobError, ModelError
from latentfarm.job import PromptSyntax
from latentfarm_worker.host_copy import send
from latentfarm_worker.text_encoders.embeddings import Embedding, Embeddings
from latentfarm_worker.text_encoders.prompt import FIRST_VECTOR, Prompt, TokenizedPrompt
from latentfarm_worker.text_encoders.prompt_weights import WeightedText, WeightedToken, parse, split_chunks
from latentfarm_worker.text_encoders.vectors_in_place import vectors_in_place

#: chunks of a prompt; without BREAK, 4,096 bytes of text have fewer
MAX_CHUNKS = 64
#: absolute weight of a word; greater ones make noise, and then overflow
MAX_WEIGHT = 100.0


class TextEmbedding(NamedTuple):
    """The output of one text encoder.

    ``hidden_states``: (77 x chunks, D). ``projected``: the pooled text (P,) of the first chunk, as in
    AUTOMATIC1111's web UI; None if the encoder has none.
    """

    hidden_states: torch.Tensor
    projected: torch.Tensor | None


class _Chunk(NamedTuple):
    """The ids of a chunk, and what is the same for all chunks of its prompt."""

    ids: tuple[int, ...] = ()
    clip_skip: int = 0
    embeddings: tuple[Embedding, ...] = ()


class ClipEncoder:
    """One CLIP text encoder (transformers' CLIPTextModel or CLIPTextModelWithProjection) with its tokenizer.

    Args:
        rows: chunks in one forward pass. The last group is padded with empty chunks, so a chunk's numbers depend on
            the size of the group, and not on the other chunks in it.
        layer: the layer whose hidden states are returned, counted from the end; None: the last, with the final layer
            norm.
        pooled: the entry of the model's output that is the pooled text.
        number: the model's first text encoder has 0: which vectors of an embedding it reads.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: Any,
        *,
        rows: int,
        layer: int | None = None,
        pooled: str = "text_embeds",
        number: int = 0,
    ) -> None:
        self.tokenizer, self.model = tokenizer, model
        self._number = number
        self.rows, self.layer, self._pooled = rows, layer, pooled
        self._start, self._end, self._pad = (
            int(number) for number in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        )
        #: tokens in a chunk, start and end included
        self.length = int(tokenizer.model_max_length)
        self._masked = bool(getattr(model.config, "use_attention_mask", False))
        # a fast tokenizer is not thread-safe
        self._lock = Lock()

    @property
    def room(self) -> int:
        """Return the tokens of a prompt that fit into a chunk."""
        return self.length - 2

    def ids(self, prompt: str) -> list[int]:
        """Return all tokens of a prompt, without start and end. Thread-safe."""
        with self._lock:
            found = self.tokenizer([prompt], add_special_tokens=False, truncation=False, verbose=False)
        return list(found.input_ids[0])

    @cached_property
    def comma(self) -> int | None:
        """Return the token id of a single comma."""
        return self.tokenizer.get_vocab().get(",</w>")  # type: ignore[no-any-return]

    @property
    def max_clip_skip(self) -> int:
        """Return how many layers can be skipped: the first one stays."""
        return int(self.model.config.num_hidden_layers) + (self.layer or -1)

    def encode(self, prompts: Sequence[Prompt]) -> list[TextEmbedding]:
        """Return the embedding of each prompt. Each chunk is weighted by itself."""
        chunks = [_Chunk(ids, each.clip_skip, each.tokens.embeddings) for each in prompts for ids in each.tokens.chunks]
        encoded = iter(self._encode_chunks(chunks))
        texts = []
        for each in prompts:
            weighted = [(next(encoded), weights) for _, weights in each.tokens.weighted_chunks()]
            hidden_states = torch.cat([apply_weights(chunk.hidden_states, weights) for chunk, weights in weighted])
            texts.append(TextEmbedding(hidden_states, weighted[0][0].projected))
        return texts

    def _encode_chunks(self, chunks: Sequence[_Chunk]) -> list[TextEmbedding]:
        """Return the embedding of each chunk."""
        encoded: list[TextEmbedding] = []
        for at in range(0, len(chunks), self.rows):
            group = [*chunks[at : at + self.rows]]
            group += [_Chunk()] * (self.rows - len(group))
            lines = [self._padded(chunk.ids) for chunk in group]
            mask = [[1] * (len(chunk.ids) + 2) + [0] * (self.room - len(chunk.ids)) for chunk in group]
            with vectors_in_place(self.model, lines, [self._vectors(chunk.embeddings) for chunk in group]):
                output = self.model(
                    send(torch.tensor(lines), self.model.device),
                    attention_mask=send(torch.tensor(mask), self.model.device) if self._masked else None,
                    output_hidden_states=self.layer is not None or any(chunk.clip_skip for chunk in group),
                )
            projected = output.get(self._pooled)
            encoded += [
                TextEmbedding(self._select(output, row, chunk.clip_skip), None if projected is None else projected[row])
                for row, chunk in enumerate(group)
            ]
        return encoded[: len(chunks)]

    def _vectors(self, embeddings: Sequence[Embedding]) -> Sequence[torch.Tensor]:
        """Return all vectors of a prompt's embeddings for this encoder, (D,) each."""
        return [vector for embedding in embeddings for vector in embedding.vectors[self._number]]

    def _select(self, output: Any, row: int, clip_skip: int) -> torch.Tensor:
        """Return the hidden states of our layer, or of one ``clip_skip`` layers earlier.

        As StableDiffusionPipeline and StableDiffusionXLPipeline: if our layer is the last, an earlier one gets the
        final layer norm too.
        """
        if self.layer is not None:
            states = output.hidden_states[self.layer - clip_skip][row]
        elif clip_skip:
            states = self.model.final_layer_norm(output.hidden_states[-1 - clip_skip][row])
        else:
            states = output.last_hidden_state[row]
        return states.to(self.model.dtype)  # type: ignore[no-any-return]

    def _padded(self, chunk: tuple[int, ...]) -> list[int]:
        return [self._start, *chunk, self._end, *[self._pad] * (self.room - len(chunk))]


def require_one_vocabulary(encoders: Sequence[ClipEncoder], name: str) -> None:
    """Check that the encoders of a model read the same tokens, for a prompt is tokenized once.

    Raises:
        ModelError: their vocabularies differ.
    """
    first, *others = (encoder.tokenizer.get_vocab() for encoder in encoders)
    if any(other != first for other in others):
        raise ModelError(
            f"{name}: tokenizer and tokenizer_2 have different vocabularies; use a model whose text encoders share "
            "their tokens"
        )


def apply_weights(hidden_states: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """Return a chunk's hidden states (77, D) times its tokens' weights, scaled back to their mean before.

    As ``EmphasisOriginal`` in modules/sd_emphasis.py of AUTOMATIC1111/stable-diffusion-webui. There a mean of 0 makes
    the prompt NaN or all zeros. Here the states then keep their weighted scale; so they do if scaling overflows.
    """
    if not weights:
        return hidden_states
    factors = torch.ones(len(hidden_states), 1)
    factors[1 : 1 + len(weights), 0] = torch.tensor(weights)
    weighted = hidden_states.float() * send(factors, hidden_states.device)
    scale = hidden_states.float().mean() / weighted.mean()
    scaled = (weighted * scale).to(hidden_states.dtype)
    # torch.where, not if: a branch would wait for the device
    usable = torch.isfinite(scaled).all() & (scale != 0)
    return torch.where(usable, scaled, weighted.to(hidden_states.dtype))


def tokenize(
    encoder: ClipEncoder, prompt: str, syntax: PromptSyntax = "plain", embeddings: Embeddings | None = None
) -> TokenizedPrompt:
    """Return a prompt's tokens.

    ``plain``: one chunk, truncated where it is full, as StableDiffusionPipeline.encode_prompt. ``a1111``: all tokens,
    weighted, in as many chunks as they need.

    ``embeddings`` are those that the prompt may name [default: none].

    Raises:
        JobError: code ``prompt_too_complex``: a weight, the number of chunks or that of an embedding's vectors is over
            its limit. Or an embedding cannot be used, as ``Embeddings.split``.

    """
    reader = _Reader(encoder, embeddings, syntax)
    if syntax == "plain":
        ids = [token.number for token in reader.read(prompt)]
        tokens = TokenizedPrompt((tuple(ids[: encoder.room]),), count=len(ids) + 2, truncated=len(ids) > encoder.room)
    else:
        sections = parse(prompt)
        _validate_weights(sections)
        tokens = _merge(_split(reader, sections))
    return replace(tokens, embeddings=tuple(reader.found)) if reader.found else tokens


class _Reader:
    """Reads texts of one prompt; ``found`` are the embeddings so far, with the number of vectors before each."""

    def __init__(self, encoder: ClipEncoder, embeddings: Embeddings | None, syntax: PromptSyntax) -> None:
        self.encoder, self._embeddings, self._syntax = encoder, embeddings, syntax
        self.found: dict[Embedding, int] = {}

    def read(self, text: str, weight: float = 1.0) -> list[WeightedToken]:
        """Return the tokens of a text, of one weight."""
        pieces = [text] if self._embeddings is None else self._embeddings.split(text, self._syntax)
        tokens: list[WeightedToken] = []
        for piece in pieces:
            if isinstance(piece, str):
                tokens += [WeightedToken(number, weight) for number in self.encoder.ids(piece)]
            else:
                tokens += self._read_embedding(piece, weight)
        return tokens

    def _read_embedding(self, embedding: Embedding, weight: float) -> list[WeightedToken]:
        before = self.found.setdefault(embedding, sum(map(len, self.found)))
        if self._syntax == "plain":
            # as of diffusers, whose added tokens have the greatest ids
            return [WeightedToken(FIRST_VECTOR + before + at, weight) for at in range(len(embedding))]
        if len(embedding) > self.encoder.room:
            raise JobError(
                "prompt_too_complex",
                f"embedding {embedding.alias} has {len(embedding)} vectors, and a chunk has room for "
                f"{self.encoder.room}; use one with fewer",
            )
        return [WeightedToken(-1 - before - at, weight, joined=at > 0) for at in range(len(embedding))]


def _validate_weights(sections: Sequence[Sequence[WeightedText]]) -> None:
    for piece in (piece for section in sections for piece in section):
        # "not <=" refuses NaN, too
        if not abs(piece.weight) <= MAX_WEIGHT:
            raise JobError(
                "prompt_too_complex",
                f"prompt {piece.text[:40]!r} has the weight {piece.weight:g}; keep it within {MAX_WEIGHT:g}, or write "
                "\\( for a bracket that is text",
            )


def _split(reader: _Reader, sections: Sequence[Sequence[WeightedText]]) -> list[Sequence[WeightedToken]]:
    """Return the tokens of all sections in chunks."""
    encoder = reader.encoder
    tokens = [[token for piece in section for token in reader.read(piece.text, piece.weight)] for section in sections]
    chunks = split_chunks(tokens, room=encoder.room, comma=encoder.comma)
    if len(chunks) > MAX_CHUNKS:
        raise JobError(
            "prompt_too_complex", f"prompt has {len(chunks)} chunks of {encoder.room} tokens; keep to {MAX_CHUNKS}"
        )
    return chunks


def _merge(chunks: Sequence[Sequence[WeightedToken]]) -> TokenizedPrompt:
    """Return chunks of weighted tokens as a prompt. Without any weight it equals the plain prompt."""
    weights = [tuple(token.weight for token in chunk) for chunk in chunks]
    weights = [each if any(weight != 1.0 for weight in each) else () for each in weights]
    return TokenizedPrompt(
        tuple(tuple(token.number for token in chunk) for chunk in chunks),
        count=sum(map(len, chunks)) + 2,
        weights=tuple(weights) if any(weights) else (),
    )
