"""The sizes of mini's networks, and how to build them untrained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from mini_training.world import NATIVE

LATENT_CHANNELS = 4
DOWNSAMPLE = 8
TEXT_LENGTH = 77


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths and depths. ``FULL`` is the shipped model; ``TINY`` is for tests."""

    vae_channels: tuple[int, int, int, int]
    unet_channels: tuple[int, ...]
    unet_groups: int
    text_width: int
    text_layers: int
    image: int = NATIVE


FULL = Sizes((16, 32, 64, 64), (80, 128), 16, 112, 3)
TINY = Sizes((8, 8, 8, 8), (16, 16), 8, 16, 1, image=64)


def build_vae(sizes: Sizes) -> AutoencoderKL:
    """Return an untrained autoencoder: (B, 3, S, S) in [-1, 1] to latents (B, 4, S/8, S/8) and back."""
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=sizes.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * len(sizes.vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(sizes.vae_channels),
        layers_per_block=1,
        norm_num_groups=8,
        # Flat shapes need no global mixing in the autoencoder, and convolutions alone let it
        # train on crops and work at any size.
        mid_block_add_attention=False,
        sample_size=sizes.image,
        force_upcast=False,
    )
    return model.to(memory_format=torch.channels_last)


def build_unet(sizes: Sizes) -> UNet2DConditionModel:
    """Return an untrained denoiser of latents (B, 4, S/8, S/8), conditioned on (B, 77, text_width)."""
    deeper = len(sizes.unet_channels) - 1
    model = UNet2DConditionModel(
        sample_size=sizes.image // DOWNSAMPLE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=sizes.unet_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=sizes.unet_groups,
        cross_attention_dim=sizes.text_width,
        # diffusers reads this as the number of heads (its issue 2011).
        attention_head_dim=4,
    )
    return model.to(memory_format=torch.channels_last)


def build_text(sizes: Sizes, vocabulary: int, end: int, start: int) -> CLIPTextModel:
    """Return an untrained text encoder: token ids (B, 77) to (B, 77, text_width)."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=sizes.text_width,
        intermediate_size=sizes.text_width * 3,
        projection_dim=sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        hidden_act="quick_gelu",
        pad_token_id=end,
        bos_token_id=start,
        eos_token_id=end,
    )
    return CLIPTextModel(config)


def parameters_of(model: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())
