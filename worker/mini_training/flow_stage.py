"""Train mini-flow's transformer, and its T5 with it, on cached latents of drawn scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from mini_training import captions
from mini_training.flow_nets import PATCH, FlowSizes, build_transformer
from mini_training.flow_text_stage import flow_ids
from mini_training.flow_tokenizer import FLOW_LENGTH
from mini_training.loop import Stage, TrainingPlan, device, mixed
from mini_training.muon import MuonWithAdam
from mini_training.unet_stage import DROPPED

# Training's noise levels are logit-normal (Esser et al. 2024, arXiv 2403.03206), its mean moved towards noise: there
# the words decide what is drawn.
LEVEL_MEAN, LEVEL_SPREAD = 0.4, 1.2


@dataclass(frozen=True, slots=True)
class Readers:
    """The two text encoders with their tokenizers. Only the T5 is trained."""

    clip: CLIPTextModel
    clip_tokenizer: CLIPTokenizer
    t5: T5EncoderModel
    t5_tokenizer: T5Tokenizer


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Return latents (B, C, H, W) as tokens (B, H/2 * W/2, 4 C), as FluxPipeline packs them."""
    count, channels, height, width = latents.shape
    cut = latents.view(count, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * PATCH * PATCH)


def position_ids(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions of text tokens (32, 3), all zero, and of image tokens (rows * columns, 3): 0, row, column."""
    grid = torch.zeros(rows, columns, 3)
    grid[..., 1] = torch.arange(rows)[:, None]
    grid[..., 2] = torch.arange(columns)[None, :]
    return torch.zeros(FLOW_LENGTH, 3), grid.reshape(-1, 3)


@torch.no_grad()
def pooled(clip: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Return CLIP's vector of each text, (B, pooled_width).

    Its attention is causal and the vector is the end token's, so that the padding after it changes nothing and is left
    out.
    """
    ids = tokenizer(texts, padding="longest", max_length=77, truncation=True, return_tensors="pt").input_ids
    vectors: torch.Tensor = clip(ids.to(clip.device)).pooler_output
    return vectors


def noise_shares(count: int, noise: torch.Generator) -> torch.Tensor:
    """Return noise levels (B,) in (0, 1): one of each of B equally likely ranges of the logit-normal distribution."""
    spread = (torch.randperm(count, generator=noise) + torch.rand(count, generator=noise)) / count
    normal = torch.special.ndtri(spread.double().clamp(1e-4, 1 - 1e-4)).float()
    return torch.sigmoid(LEVEL_MEAN + LEVEL_SPREAD * normal)


Denoiser = Callable[..., Any]


def velocity_loss(
    denoiser: Denoiser, hidden: torch.Tensor, vectors: torch.Tensor, clean: torch.Tensor, noise: torch.Generator
) -> torch.Tensor:
    """Return the squared error of the predicted velocity, noise minus clean (Lipman et al. 2023, arXiv 2210.02747).

    ``clean`` has shape (B, C, H, W), ``hidden`` (B, 32, text_width), ``vectors`` (B, pooled_width).
    """
    place = hidden.device
    shares = noise_shares(len(clean), noise)
    added = torch.randn(clean.shape, generator=noise)
    level = shares.view(-1, 1, 1, 1)
    noisy = pack((1 - level) * clean + level * added).to(place)
    text_ids, image_ids = position_ids(clean.shape[-2] // PATCH, clean.shape[-1] // PATCH)
    with mixed(place):
        guess = denoiser(
            hidden_states=noisy,
            encoder_hidden_states=hidden,
            pooled_projections=vectors,
            timestep=shares.to(place),
            txt_ids=text_ids.to(place),
            img_ids=image_ids.to(place),
            return_dict=False,
        )[0]
    loss: torch.Tensor = (guess.float() - pack(added - clean).to(place)).square().mean()
    return loss


def flow_stage(
    plan: TrainingPlan,
    sizes: FlowSizes,
    folder: Path,
    readers: Readers,
    cache: dict[str, Any],
    batch: int,
    *,
    compiled: bool = False,
) -> Stage:
    """Return the stage that trains transformer and T5 together; ``cache`` has latents, scenes, scaling and shift."""
    torch.manual_seed(plan.seed + 3)
    place = device()
    transformer: FluxTransformer2DModel = build_transformer(sizes).to(place)
    t5 = readers.t5.to(place).train()
    clip = readers.clip.to(place).eval()
    latents, scenes = cache["latents"], cache["scenes"]
    denoiser: Denoiser = torch.compile(transformer) if compiled else transformer

    def loss(rng: np.random.Generator, noise: torch.Generator, _share: float) -> torch.Tensor:
        chosen = rng.integers(len(scenes), size=batch)
        texts = ["" if rng.random() < DROPPED else captions.caption(scenes[i], rng) for i in chosen]
        with mixed(place):
            hidden = t5(flow_ids(readers.t5_tokenizer, texts).to(place)).last_hidden_state
        vectors = pooled(clip, readers.clip_tokenizer, texts)
        clean = (latents[torch.from_numpy(chosen)].float() - cache["shift"]) * cache["scaling"]
        return velocity_loss(denoiser, hidden.float(), vectors, clean, noise)

    models = {"transformer": transformer, "t5": t5}
    return Stage(plan, models, loss, folder, optimizer=MuonWithAdam)
