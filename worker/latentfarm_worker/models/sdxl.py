"""Stable Diffusion XL and XL Turbo (arXiv 2307.01952, 2311.17042): two text encoders, conditioned on the image size.

It loads all base models of diffusers' StableDiffusionXLPipeline, and adds no watermark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints import Checkpoint
from latentfarm_worker.models.latent_diffusion import LatentDiffusion
from latentfarm_worker.text_encoders.clip import require_one_vocabulary
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors

#: original height and width, the crop's top and left, target height and width
_TIME_IDS = 6


class StableDiffusionXL(LatentDiffusion):
    """A model conditioned on both encoders' penultimate hidden states, the second's projection, and the image size."""

    pipeline = "StableDiffusionXLPipeline"
    inputs: tuple[str, ...] = ("image", "mask_image")
    encoders: ClassVar = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    tokenizers: ClassVar = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    text_layer = -2
    unet_config: ClassVar = {"addition_embed_type": "text_time"}
    plain_model = "a plain stable diffusion XL model, whose U-Net needs sample, timestep, texts and sizes only"
    added = ("text_embeds", "time_ids")
    refined_by = "text_encoder_2"
    upcast_vae = True

    def __init__(self, parts: Mapping[str, Any], *, name: str, model_digest: str, dtype: torch.dtype) -> None:
        super().__init__(parts, name=name, model_digest=model_digest, dtype=dtype)
        self._zeros_for_empty = bool(parts["model_index"].get("force_zeros_for_empty_prompt", True))
        self._latents_mean, self._latents_std = self._channels("latents_mean"), self._channels("latents_std")
        require_one_vocabulary(self.text_encoders, name)

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Check the config files for a U-Net with unsupported conditioning inputs.

        Raises:
            ModelError: it has one. A refiner, for example, is conditioned on an aesthetic score.

        """
        super().check(checkpoint)
        path, config = checkpoint.where("unet"), checkpoint.config("unet")
        width = checkpoint.config("text_encoder_2").get("projection_dim", 0)
        wanted = width + _TIME_IDS * config.get("addition_time_embed_dim", 0)
        if config.get("projection_class_embeddings_input_dim") != wanted:
            raise ModelError(
                f"{path}: projection_class_embeddings_input_dim is "
                f"{config.get('projection_class_embeddings_input_dim')!r}, but texts and sizes make {wanted}: "
                "use a base model; refiners only finish what one began"
            )

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return ``encoder_hidden_states`` (77 x chunks, D1 + D2) and ``text_embeds`` (P,) of each prompt.

        If the model sets ``force_zeros_for_empty_prompt``, an empty negative prompt is all zeros, as in the pipeline.
        """
        texts = super().encode(prompts)
        return [
            {key: torch.zeros_like(tensor) for key, tensor in text.items()} if self._is_zeros(prompt) else text
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _is_zeros(self, prompt: Prompt) -> bool:
        return self._zeros_for_empty and prompt.negative and not any(prompt.tokens.chunks)

    def row_conditioning(self, width: int, height: int, guidance_scale: float) -> Tensors:
        """Return ``time_ids`` (6,), pixels in float32, besides the guidance.

        The original and the target have the image's size, and there is no crop.
        """
        guidance = super().row_conditioning(width, height, guidance_scale)
        return {**guidance, "time_ids": torch.tensor([height, width, 0, 0, height, width]).float()}

    @torch.inference_mode()
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the output of the U-Net, or of the refiner that the rows have, float32 (R, C, h, w)."""
        refined = self.refiners.predict(latents, timesteps, conditioning)
        return super().predict(latents, timesteps, conditioning) if refined is None else refined

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        if self._latents_mean is None or self._latents_std is None:
            return super()._unscaled(latents)
        mean, std = self._latents_mean.to(latents.dtype), self._latents_std.to(latents.dtype)
        return latents * std / float(self.vae.config.scaling_factor) + mean

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents of the VAE in the scale of the model, the reverse of ``_unscaled``."""
        if self._latents_mean is None or self._latents_std is None:
            return super().scale_latents(latents)
        mean, std = (torch.tensor(self.vae.config[key]).view(-1, 1, 1) for key in ("latents_mean", "latents_std"))
        return (latents - mean) * float(self.vae.config.scaling_factor) / std

    def _channels(self, key: str) -> torch.Tensor | None:
        """Return an entry of the VAE's config with a number for each channel of the latents, if it is set."""
        numbers = self.vae.config.get(key)
        # copied at load, because such a copy waits for the device
        return None if numbers is None else torch.tensor(numbers).view(1, -1, 1, 1).to(self.device)
