"""Chroma: a smaller FLUX.1 schnell without CLIP, for guidance with a negative prompt, as diffusers' ChromaPipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from latentfarm.job import PromptSyntax
from latentfarm_worker.adapters.controlnet import NoControlNets
from latentfarm_worker.models.flux import Flux
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt
from latentfarm_worker.text_encoders.t5 import T5Encoder, tokenize

#: tokens of T5, the default of ChromaPipeline
_TEXT_LENGTH = 512


class Chroma(Flux):
    """A model conditioned on T5's hidden states, of which the transformer reads the text and the first padding."""

    pipeline = "ChromaPipeline"
    denoiser = ("transformer", "ChromaTransformer2DModel")
    encoders: ClassVar = {"text_encoder": "T5EncoderModel"}
    tokenizers: ClassVar = {"tokenizer": "T5Tokenizer"}
    control_nets = NoControlNets

    def _make_encoders(self, parts: Mapping[str, Any]) -> None:
        self.t5 = T5Encoder(parts["tokenizer"], parts["text_encoder"], longest=_TEXT_LENGTH, masked=True)

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return a prompt's tokens, as ``t5.tokenize``."""
        return tokenize(None, self.t5, prompt, syntax)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return ``encoder_hidden_states`` (text length, D) and ``text_mask`` (text length,) of each prompt."""
        encoded = self.t5.encode_with_mask([prompt.tokens.ids for prompt in prompts], padding=1)
        return [{"encoder_hidden_states": states, "text_mask": mask} for states, mask in encoded]

    def _inputs(self, conditioning: Tensors, *, tokens: int) -> dict[str, torch.Tensor | None]:
        mask = conditioning["text_mask"]
        return {"attention_mask": torch.cat([mask, mask.new_ones(len(mask), tokens)], dim=1)}

    @classmethod
    def _arrange(cls, denoising_model: Any) -> None:
        embedding = denoising_model.time_text_embed
        embedding.guidance_proj = _NoGuidance(embedding.guidance_proj)


class _NoGuidance(torch.nn.Module):
    """The embedding of the guidance scale 0, which diffusers computes on the host in each call, and waits for."""

    embedding: torch.Tensor

    def __init__(self, embed: Any) -> None:
        super().__init__()
        self.register_buffer("embedding", embed(torch.tensor([0])), persistent=False)

    def forward(self, scales: torch.Tensor) -> torch.Tensor:
        """Return the embedding for each row."""
        return self.embedding.expand(len(scales), -1)
