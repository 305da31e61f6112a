"""Stable diffusion XL and XL Turbo (arXiv 2307.01952, 2311.17042): two text encoders, and a U-Net that is told sizes.

Everything diffusers' StableDiffusionXLPipeline loads, without its watermark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from latentfarm.errors import ModelError
from latentfarm_worker.models.checkpoint import read_json
from latentfarm_worker.models.latent_diffusion import LatentDiffusion
from latentfarm_worker.models.text_encoder import Prompt, Tensors

#: original height and width, the crop's top and left, target height and width
_TIME_IDS = 6


class StableDiffusionXL(LatentDiffusion):
    """One model of the family.

    The states are those of the encoders' last layer but one, the second encoder's projection is told beside them.
    """

    pipeline = "StableDiffusionXLPipeline"
    encoders: ClassVar = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    text_layer = -2
    unet_config: ClassVar = {"addition_embed_type": "text_time"}
    plain_model = "a plain stable diffusion XL model, whose U-Net needs sample, timestep, texts and sizes only"
    added = ("text_embeds", "time_ids")

    def __init__(self, parts: Mapping[str, Any], *, name: str, model_digest: str, dtype: torch.dtype) -> None:
        super().__init__(parts, name=name, model_digest=model_digest, dtype=dtype)
        self._zeros_for_none = bool(parts["model_index"].get("force_zeros_for_empty_prompt", True))
        first, second = (encoder.tokenizer.get_vocab() for encoder in self.text_encoders)
        if first != second:
            raise ModelError(
                f"{name}: tokenizer and tokenizer_2 have other words; use a model whose text encoders read the same "
                "tokens"
            )

    @classmethod
    def check(cls, folder: Path) -> None:
        """Refuse, by the config files alone, a U-Net that wants to be told what we do not tell.

        Raises:
            ModelError: it does: a refiner's, for one, which is told of one size and an aesthetic score.

        """
        super().check(folder)
        path = folder / "unet" / "config.json"
        config = read_json(path)
        width = read_json(folder / "text_encoder_2" / "config.json").get("projection_dim", 0)
        wanted = width + _TIME_IDS * config.get("addition_time_embed_dim", 0)
        if config.get("projection_class_embeddings_input_dim") != wanted:
            raise ModelError(
                f"{path}: projection_class_embeddings_input_dim is "
                f"{config.get('projection_class_embeddings_input_dim')!r}, but texts and sizes make {wanted}: "
                "use a base model; refiners only finish what one began"
            )

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return ``states`` (77 x chunks, D1 + D2) and ``text_embeds`` (P,) of each prompt.

        Where the model wants it so, a negative prompt with nothing in it is zeros: to the pipeline it is none.
        """
        texts = super().encode(prompts)
        return [
            {key: torch.zeros_like(tensor) for key, tensor in text.items()} if self._is_none(prompt) else text
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _is_none(self, prompt: Prompt) -> bool:
        return self._zeros_for_none and prompt.negative and not any(prompt.tokens.chunks)

    def size_tensors(self, width: int, height: int) -> Tensors:
        """Return ``time_ids`` (6,), pixels in float32: an original of the picture's own size, uncropped."""
        return {"time_ids": torch.tensor([height, width, 0, 0, height, width], device=self.device).float()}

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = (self.vae.config.get(key) for key in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return super()._unscaled(latents)
        mean, std = (torch.tensor(numbers).view(1, -1, 1, 1).to(latents) for numbers in (mean, std))
        return latents * std / float(self.vae.config.scaling_factor) + mean
