"""Stable Diffusion 1.x and 2.x: one CLIP text encoder (arXiv 2112.10752).

It loads all models of diffusers' StableDiffusionPipeline, and runs no safety checker.
"""

from __future__ import annotations

from typing import Any, ClassVar

from latentfarm_worker.checkpoints import Checkpoint
from latentfarm_worker.models.latent_diffusion import LatentDiffusion


class StableDiffusion(LatentDiffusion):
    """A model whose U-Net is conditioned on text only."""

    pipeline = "StableDiffusionPipeline"
    inputs: tuple[str, ...] = ("image", "mask_image")
    encoders: ClassVar = {"text_encoder": "CLIPTextModel"}
    tokenizers: ClassVar = {"tokenizer": "CLIPTokenizer"}
    unet_config: ClassVar = {"addition_embed_type": None}
    plain_model = "a plain stable diffusion 1.x or 2.x model, whose U-Net needs sample, timestep and text only"

    @classmethod
    def _scheduler_config(cls, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the scheduler's config with StableDiffusionPipeline's corrections for old models."""
        config = super()._scheduler_config(checkpoint)
        if "steps_offset" in config:
            config["steps_offset"] = 1
        return {**config, "clip_sample": False}
