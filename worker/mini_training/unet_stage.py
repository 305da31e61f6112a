"""Train the denoiser, and the text encoder with it, on cached latents of drawn scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

from mini_training import captions, world
from mini_training.loop import Stage, TrainingPlan, device, mixed
from mini_training.nets import Sizes, build_unet
from mini_training.text_stage import encode_texts
from mini_training.vae_stage import to_tensor

# Stable Diffusion 1's noise schedule, so that every scheduler of SD 1 works unchanged.
BETA_START, BETA_END, NOISE_STEPS = 0.00085, 0.012, 1000
DROPPED = 0.1
# The noise of training gets a small random mean per channel.  At the last step of this schedule 7% of
# the latent is still there; over a flat background of 256 latent pixels its mean could be read off the
# noise, and a denoiser that does so draws grey from the plain noise of sampling.
# https://www.crosslabs.org/blog/diffusion-with-offset-noise
NOISE_OFFSET = 0.08
# Errors in the noise are worth up to this much more where little of the image is left, as they are
# with a velocity loss (Salimans and Ho 2022): there the words decide what is drawn.
WEIGHT_CAP = 8.0


def noise_levels() -> torch.Tensor:
    """Return Stable Diffusion's alpha_bar, (1000,), from almost 1 down to 0.0047."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, NOISE_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def loss_weights(levels: torch.Tensor) -> torch.Tensor:
    """Return the weight of the noise's squared error at each level, of mean one."""
    weights = (1 / levels).clamp(max=WEIGHT_CAP)
    return weights / weights.mean()


@torch.no_grad()
def cache_latents(vae: AutoencoderKL, side: int, count: int, seed: int, path: Path) -> dict[str, Any]:
    """Draw and encode ``count`` scenes once; return their latents (count, 4, S/8, S/8) and scaling."""
    scenes = cached_scenes(count, seed)
    if not path.exists():
        place = next(vae.parameters()).device
        parts = []
        for first in range(0, count, 64):
            target = to_tensor([world.draw(s, side) for s in scenes[first : first + 64]])
            with mixed(place):
                mean = vae.encode(target.to(place)).latent_dist.mean
            parts.append(mean.half().cpu())
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.cat(parts), path)
    latents: torch.Tensor = torch.load(path, weights_only=True)
    return {"latents": latents, "scenes": scenes, "scaling": float(1 / latents.float().std())}


def cached_scenes(count: int, seed: int) -> list[world.Scene]:
    """Return the scenes behind the cache; the same for the same seed."""
    rng = np.random.default_rng([seed, 4])
    return [world.training_scene(rng) for _ in range(count)]


def noise_loss(
    unet: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any],
    hidden: torch.Tensor,
    clean: torch.Tensor,
    noise: torch.Generator,
) -> torch.Tensor:
    """Return the weighted squared error of the predicted noise, over evenly spaced timesteps."""
    count, channels = clean.shape[:2]
    levels = noise_levels()
    # One step from each of B equal ranges: less variance than B independent ones.
    spread = (torch.randperm(count, generator=noise) + torch.rand(count, generator=noise)) / count
    steps = (spread * NOISE_STEPS).long().clamp(max=NOISE_STEPS - 1)
    added = torch.randn(clean.shape, generator=noise)
    added = added + NOISE_OFFSET * torch.randn((count, channels, 1, 1), generator=noise)
    kept = levels[steps].view(-1, 1, 1, 1)
    noisy = (kept.sqrt() * clean + (1 - kept).sqrt() * added).contiguous(memory_format=torch.channels_last)
    place = hidden.device
    with mixed(place):
        guess = unet(noisy.to(place), steps.to(place), hidden).sample
    error = (guess.float() - added.to(place)).square().mean(dim=(1, 2, 3))
    loss: torch.Tensor = (error * loss_weights(levels)[steps].to(place)).mean()
    return loss


def unet_stage(
    plan: TrainingPlan,
    sizes: Sizes,
    folder: Path,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    cache: dict[str, Any],
    batch: int,
) -> Stage:
    """Return the stage that trains denoiser and text encoder together."""
    torch.manual_seed(plan.seed + 2)
    place = device()
    unet = build_unet(sizes).to(place)
    text = text.to(place).train()
    latents, scenes, scaling = cache["latents"], cache["scenes"], cache["scaling"]

    def loss(rng: np.random.Generator, noise: torch.Generator, _share: float) -> torch.Tensor:
        chosen = rng.integers(len(scenes), size=batch)
        texts = ["" if rng.random() < DROPPED else captions.caption(scenes[i], rng) for i in chosen]
        ids = encode_texts(tokenizer, texts).to(place)
        with mixed(place):
            hidden = text(ids).last_hidden_state
        clean = latents[torch.from_numpy(chosen)].float() * scaling
        return noise_loss(unet, hidden.float(), clean, noise)

    return Stage(plan, {"unet": unet, "text": text}, loss, folder)
