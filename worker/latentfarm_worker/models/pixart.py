"""PixArt-Sigma (arXiv 2403.04692): a transformer that predicts noise from T5's hidden states.

It loads all models of diffusers' PixArtSigmaPipeline. An image has exactly the size of its job, as with the
pipeline's ``use_resolution_binning=False``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from latentfarm.job import PromptSyntax
from latentfarm_worker.checkpoints import Checkpoint
from latentfarm_worker.models.pipeline_model import PipelineModel
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt
from latentfarm_worker.text_encoders.t5 import T5Encoder, tokenize
from latentfarm_worker.text_encoders.unweighted import unweighted

#: tokens of T5, the default of PixArtSigmaPipeline
_TEXT_LENGTH = 300


class PixArtSigma(PipelineModel):
    """A model whose output has the noise and its variance, of which samplers use the noise."""

    pipeline = "PixArtSigmaPipeline"
    denoiser = ("transformer", "PixArtTransformer2DModel")
    encoders: ClassVar = {"text_encoder": "T5EncoderModel"}
    tokenizers: ClassVar = {"tokenizer": "T5Tokenizer"}
    patch_size = 2

    def __init__(self, parts: Mapping[str, Any], *, name: str, model_digest: str, dtype: torch.dtype) -> None:
        super().__init__(parts, name=name, model_digest=model_digest, dtype=dtype)
        self.t5 = T5Encoder(parts["tokenizer"], parts["text_encoder"], longest=_TEXT_LENGTH, masked=True)
        self.max_prompt_tokens = self.t5.length

    @classmethod
    def token_counter(cls, checkpoint: Checkpoint) -> Callable[[str], int]:
        """Return a function that counts a prompt's tokens, end included."""
        count = super().token_counter(checkpoint)
        return lambda prompt: count(_normalized(prompt))

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return a prompt's tokens, in lower case as the pipeline has it without ``clean_caption``.

        Raises:
            JobError: code ``prompt_too_complex``: a word has a weight, or there is a BREAK.
        """
        return tokenize(None, self.t5, _normalized(unweighted(prompt, syntax)), "plain")

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return ``encoder_hidden_states`` (300, D) of each prompt, and ``encoder_attention_mask`` (300,), 1 or 0."""
        encoded = self.t5.encode_with_mask([prompt.tokens.ids for prompt in prompts])
        return [{"encoder_hidden_states": states, "encoder_attention_mask": mask} for states, mask in encoded]

    @torch.inference_mode()
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the noise, float32 (R, C, h, w)."""
        with self._calling(latents, conditioning):
            output = self.denoising_model(
                latents.to(self.dtype),
                timestep=timesteps,
                encoder_hidden_states=conditioning["encoder_hidden_states"],
                encoder_attention_mask=conditioning["encoder_attention_mask"],
                # PixArt-Alpha's, which Sigma has not
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                return_dict=False,
            )[0]
        return output[:, : self.latent_channels].float()  # type: ignore[no-any-return]

    def _native_size(self) -> tuple[int, int]:
        side = int(self.denoising_model.config.sample_size) * self.vae_scale_factor
        return side, side


def _normalized(prompt: str) -> str:
    return prompt.lower().strip()
