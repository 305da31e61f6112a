"""Tiny IP-Adapters with random weights, for the tiny models, in the layout of h94/IP-Adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

#: draws weights of a shape
Draw = Callable[..., torch.Tensor]
#: of the image encoder's hidden states and of its embedding
_WIDTH, _EMBEDDING = 32, 24
#: tokens of an image
_TOKENS = 4
#: of the resampler of ``plus``; its heads have 64 numbers each
_HIDDEN, _INNER, _DEPTH = 16, 64, 4


def make_image_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Write a CLIP image encoder; return ``folder``."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.CLIPVisionConfig(
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            projection_dim=_EMBEDDING,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
        transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def make_ip_adapter(path: Path, base: Path, *, seed: int = 0, plus: bool = False) -> Path:
    """Write the file of an adapter for the model in the folder ``base``; return ``path``.

    ``plus``: it reads the encoder's hidden states.
    """
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_pretrained(base / "unet", low_cpu_mem_usage=False)
    width = unet.config.cross_attention_dim
    dice = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=dice).div(shape[-1] ** 0.5)

    tensors = _plus(draw, width) if plus else _plain(draw, width)
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(layers):
        inner = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * number + 1}.{part}.weight"] = 3 * draw(inner, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def _plain(draw: Draw, width: int) -> dict[str, torch.Tensor]:
    return {
        "image_proj.proj.weight": draw(_TOKENS * width, _EMBEDDING),
        "image_proj.proj.bias": draw(_TOKENS * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }


def _plus(draw: Draw, width: int) -> dict[str, torch.Tensor]:
    tensors = {
        "latents": draw(1, _TOKENS, _HIDDEN),
        "proj_in.weight": draw(_HIDDEN, _WIDTH),
        "proj_in.bias": draw(_HIDDEN),
        "proj_out.weight": draw(width, _HIDDEN),
        "proj_out.bias": draw(width),
        "norm_out.weight": torch.ones(width),
        "norm_out.bias": torch.zeros(width),
    }
    for layer in range(_DEPTH):
        for norm in (f"{layer}.0.norm1", f"{layer}.0.norm2", f"{layer}.1.0"):
            tensors |= {f"layers.{norm}.weight": torch.ones(_HIDDEN), f"layers.{norm}.bias": torch.zeros(_HIDDEN)}
        tensors |= {
            f"layers.{layer}.0.to_q.weight": draw(_INNER, _HIDDEN),
            f"layers.{layer}.0.to_kv.weight": draw(2 * _INNER, _HIDDEN),
            f"layers.{layer}.0.to_out.weight": draw(_HIDDEN, _INNER),
            f"layers.{layer}.1.1.weight": draw(4 * _HIDDEN, _HIDDEN),
            f"layers.{layer}.1.3.weight": draw(_HIDDEN, 4 * _HIDDEN),
        }
    return {f"image_proj.{name}": tensor for name, tensor in tensors.items()}
