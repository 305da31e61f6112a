"""What the engine asks of a model: tokens, three verbs and a few facts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from latentfarm.job import PromptSyntax
from latentfarm_worker.models.text_encoder import Prompt, Tensors, TokenizedPrompt


class Family(Protocol):
    """One loaded model.

    ``native_width`` and ``native_height`` are pixels, ``vae_scale_factor`` pixels to a latent's side,
    ``embeds_guidance`` whether the model is told the guidance scale, instead of a second row without the prompt,
    ``scheduler_config`` the model's own with its ``_class_name``, ``model_digest`` a sha256 over the weight
    files. ``max_clip_skip`` is how many layers of its text encoders can be left out at their end, ``compiled`` whether
    ``compile`` was called.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    latent_channels: int
    native_width: int
    native_height: int
    vae_scale_factor: int
    embeds_guidance: bool
    scheduler_config: dict[str, Any]
    model_digest: str
    max_clip_skip: int
    compiled: bool

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        """Return a prompt's tokens; any thread may ask.

        Raises:
            JobError: code ``prompt``: it cannot be encoded as it is.
        """

    def encode(self, prompts: Sequence[Prompt]) -> Sequence[Tensors]:
        """Return of each prompt what ``predict`` wants to know of it, without a dimension for rows.

        There is at least ``states`` (77 x chunks, D). The numbers of a prompt do not depend on the others.
        """

    def size_tensors(self, width: int, height: int) -> Tensors:
        """Return what ``predict`` wants to know of a picture's size in pixels, as ``encode`` does of a prompt."""

    def guidance_tensors(self, scale: float) -> Tensors:
        """Return what ``predict`` wants to know of a picture's guidance scale; nothing unless ``embeds_guidance``."""

    def compile(self, counts: Collection[int]) -> None:
        """Compile the model for so many rows of the native size and one chunk of text; the next such call does it.

        Any other count or shape runs as it would without.
        """

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, told: Tensors) -> torch.Tensor:
        """Return the model's output, float32, of latents (R, C, h, w), timesteps (R,) and what is told of each row."""

    def decode(
        self, latents: torch.Tensor, *, float32: bool = False, tiled: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pictures of float32 latents (N, C, h, w), on the device.

        They are uint8 (N, H, W, 3), with a bool (N,) that is false where the decoder's numbers were not all finite.
        With ``float32`` the decoder runs in that dtype, whatever its own: slower, and it overflows nowhere. ``tiled``
        needs less memory, and gives other numbers.
        """


class LatentShape(NamedTuple):
    """What images in one batch have in common: the latents' height and width, and the chunks of their texts."""

    height: int
    width: int
    chunks: int = 1

    @property
    def area(self) -> int:
        """Latents of one channel."""
        return self.height * self.width


def native_shape(family: Family) -> LatentShape:
    """Return the shape of the family's native size, for texts of one chunk."""
    return LatentShape(family.native_height // family.vae_scale_factor, family.native_width // family.vae_scale_factor)
