"""What the engine asks of a model: three verbs and a few facts."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from latentfarm_worker.text import Text


class Family(Protocol):
    """One loaded model.

    ``native_width`` and ``native_height`` are pixels, ``vae_scale_factor`` pixels to a latent's side,
    ``scheduler_config`` the model's own with its ``_class_name``, ``model_digest`` a sha256 over the weight
    files.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    latent_channels: int
    native_width: int
    native_height: int
    vae_scale_factor: int
    scheduler_config: dict[str, Any]
    model_digest: str

    def encode(self, prompt: str) -> Text:
        """Encode one prompt to (77, D): alone, so that its numbers never depend on neighbours."""

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return the model's output of latents (R, C, h, w), (R,) and (R, 77, D): float32, as the latents."""

    def decode(self, latents: torch.Tensor, *, float32: bool = False) -> torch.Tensor:
        """Return the picture, uint8 (H, W, 3) on the device, of float32 latents (1, C, h, w).

        With ``float32`` the decoder runs in that dtype, whatever its own: slower, and it overflows nowhere.

        Raises:
            JobError: code ``nan``: the decoder gave numbers that are not finite.

        """
