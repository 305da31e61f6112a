"""Train the autoencoder: first on crops, which are cheap, then on whole images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from mini_training import world
from mini_training.loop import Stage, TrainingPlan, device, mixed
from mini_training.nets import Sizes, build_vae

CROP_SHARE = 0.65
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.1


def busy_scene(rng: np.random.Generator) -> world.Scene:
    """Return one to four things anywhere, in any colours, so that the autoencoder generalizes beyond the world."""

    def any_rgb() -> tuple[int, int, int]:
        red, green, blue = (int(v) for v in rng.integers(0, 256, size=3))
        return red, green, blue

    things = tuple(
        world.Thing(
            shape=list(world.SHAPES)[int(rng.integers(len(world.SHAPES)))],
            colour="",
            rgb=any_rgb(),
            x=float(rng.uniform(0.1, 0.9)),
            y=float(rng.uniform(0.1, 0.9)),
            radius=float(rng.uniform(0.1, 0.35)),
            turn=float(rng.uniform(-0.5, 0.5)),
        )
        for _ in range(int(rng.integers(1, 5)))
    )
    return world.Scene("", any_rgb(), things)


def to_tensor(images: list[world.Image]) -> torch.Tensor:
    """Return uint8 images (H, W, 3) as (B, 3, H, W) in [-1, 1], channels last."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (stacked / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_images(tensor: torch.Tensor) -> list[world.Image]:
    """Return the images of a tensor, the inverse of ``to_tensor``, clipped."""
    scaled = ((tensor.float() + 1) * 127.5).round().clamp(0, 255)
    return list(scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy())


def training_images(rng: np.random.Generator, count: int, side: int, crop: int) -> torch.Tensor:
    """Return a training batch (count, 3, crop, crop), half of it from the world."""
    drawn = []
    for i in range(count):
        scene = world.training_scene(rng) if i % 2 else busy_scene(rng)
        top, left = (int(v) for v in rng.integers(0, side - crop + 1, size=2))
        drawn.append(world.draw(scene, side)[top : top + crop, left : left + crop])
    return to_tensor(drawn)


def vae_loss(vae: AutoencoderKL, target: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Return the loss: squared error, some absolute error for sharp edges, some KL for smooth latents."""
    with mixed(target.device):
        posterior = vae.encode(target).latent_dist
        spread = torch.randn(posterior.mean.shape, generator=noise).to(target.device)
        rebuilt = vae.decode(posterior.mean + posterior.std * spread).sample
    gap = rebuilt.float() - target
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss: torch.Tensor = gap.square().mean() + EDGE_WEIGHT * gap.abs().mean() + KL_WEIGHT * divergence
    return loss


def vae_stage(plan: TrainingPlan, sizes: Sizes, folder: Path, batch: int) -> Stage:
    """Return the stage that trains the autoencoder; ``batch`` counts whole images."""
    torch.manual_seed(plan.seed)
    place = device()
    vae = build_vae(sizes).to(place)

    def loss(rng: np.random.Generator, noise: torch.Generator, share: float) -> torch.Tensor:
        side = sizes.image
        cropped = share < CROP_SHARE
        target = training_images(rng, 2 * batch if cropped else batch, side, side // 2 if cropped else side)
        return vae_loss(vae, target.to(place), noise)

    return Stage(plan, {"vae": vae}, loss, folder)
