"""The encoded scenes that adapters are trained on: latents and text states, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from mini_training import captions, world
from mini_training.loop import mixed
from mini_training.text_stage import encode_texts
from mini_training.unet_stage import DROPPED
from mini_training.vae_stage import to_tensor

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Encoded:
    """Latents (N, 4, S/8, S/8), scaled, and text states (N, 77, width) of scenes, both float16."""

    latents: torch.Tensor
    hidden: torch.Tensor

    def pick(self, rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the numbers of ``count`` random scenes, their latents and their text states, in float32."""
        chosen = torch.from_numpy(rng.integers(len(self.latents), size=count))
        return chosen, self.latents[chosen].float(), self.hidden[chosen].float()


@torch.no_grad()
def encode_images(pipe: StableDiffusionPipeline, images: list[world.Image]) -> torch.Tensor:
    """Return the scaled latents of images, (N, 4, S/8, S/8) float16."""
    parts = []
    for first in range(0, len(images), _AT_ONCE):
        with mixed(pipe.device):
            mean = pipe.vae.encode(to_tensor(images[first : first + _AT_ONCE]).to(pipe.device)).latent_dist.mean
        parts.append((mean * pipe.vae.config.scaling_factor).half().cpu())
    return torch.cat(parts)


@torch.no_grad()
def encode_captions(pipe: StableDiffusionPipeline, texts: list[str]) -> torch.Tensor:
    """Return the text states of captions, (N, 77, width) float16."""
    parts = []
    for first in range(0, len(texts), _AT_ONCE):
        ids = encode_texts(pipe.tokenizer, texts[first : first + _AT_ONCE]).to(pipe.device)
        parts.append(pipe.text_encoder(ids).last_hidden_state.half().cpu())
    return torch.cat(parts)


def encoded(
    pipe: StableDiffusionPipeline,
    scenes: list[world.Scene],
    draw: Callable[[world.Scene], world.Image],
    seed: int,
    path: Path,
) -> Encoded:
    """Draw, caption and encode scenes, or load what an earlier run has written to ``path``."""
    if not path.exists():
        rng = np.random.default_rng([seed, 7])
        texts = ["" if rng.random() < DROPPED else captions.caption(scene, rng) for scene in scenes]
        path.parent.mkdir(parents=True, exist_ok=True)
        latents = encode_images(pipe, [draw(scene) for scene in scenes])
        torch.save({"latents": latents, "hidden": encode_captions(pipe, texts)}, path)
    stored: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return Encoded(stored["latents"], stored["hidden"])
