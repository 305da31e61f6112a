"""Inpainting models of Stable Diffusion, whose U-Net also reads a mask and the image without what is painted again.

It loads all models of diffusers' StableDiffusionInpaintPipeline and StableDiffusionXLInpaintPipeline with 9 channels.
Those with 4 are plain models, which paint parts of images again under their own names.
"""

from __future__ import annotations

import torch

from latentfarm_worker.adapters.controlnet import NoControlNets
from latentfarm_worker.models.latent_diffusion import LatentDiffusion
from latentfarm_worker.models.sd import StableDiffusion
from latentfarm_worker.models.sdxl import StableDiffusionXL
from latentfarm_worker.text_encoders.prompt import Tensors


class InpaintingModel(LatentDiffusion):
    """A model whose jobs all have an image and a mask. Its scheduler denoises the whole image."""

    required_inputs: tuple[str, ...] = ("image", "mask_image")
    #: the mask, and the latents of the image
    extra_channels = 5
    control_nets = NoControlNets

    def row_conditioning(self, width: int, height: int, guidance_scale: float) -> Tensors:
        """Return ``masked_latents`` (5, h, w), of an image of which nothing is known, besides that of a plain model.

        Those of a job take its place.
        """
        factor = self.vae_scale_factor
        unknown = torch.zeros(self.extra_channels, height // factor, width // factor)
        unknown[0] = 1.0
        return {**super().row_conditioning(width, height, guidance_scale), "masked_latents": unknown}

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return the U-Net's output for latents and their ``masked_latents``, float32 (R, C, h, w)."""
        joined = torch.cat([latents, conditioning["masked_latents"]], dim=1)
        return super().predict(joined, timesteps, conditioning)


class StableDiffusionInpaint(InpaintingModel, StableDiffusion):
    """An inpainting model of Stable Diffusion 1.x or 2.x."""

    pipeline = "StableDiffusionInpaintPipeline"


class StableDiffusionXLInpaint(InpaintingModel, StableDiffusionXL):
    """An inpainting model of Stable Diffusion XL."""

    pipeline = "StableDiffusionXLInpaintPipeline"
