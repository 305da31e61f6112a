"""A tiny model of Stable Diffusion XL whose second text encoder fits a refiner, and refiners with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tests.support.tiny import make_tiny
from tests.support.tiny.stable_diffusion import NATIVE, clip_text_encoder

#: as of XL's: the second encoder's states are as wide as its projection
_WIDTH, _EMBEDDED = 64, 32


def make_xl(folder: Path) -> Path:
    """Write the model as a diffusers folder; return ``folder``."""
    make_tiny(folder, kind="sdxl")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        encoder = clip_text_encoder("CLIPTextModelWithProjection", _WIDTH, layers=3, projected=_WIDTH)
        encoder.save_pretrained(folder / "text_encoder_2")
        _unet(folder, numbers=6, attention=None).save_pretrained(folder / "unet")
    return folder


def make_refiner(folder: Path, base: Path, *, seed: int = 1, **config: Any) -> Path:
    """Write a refiner of the model in the folder ``base``, as the folder of a U-Net; return ``folder``.

    ``config`` has what differs from a refiner of this base.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _unet(base, numbers=5, attention=_WIDTH, **config).save_pretrained(folder)
    return folder


def _unet(base: Path, *, numbers: int, attention: int | None, **config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    own = json.loads((base / "unet" / "config.json").read_text())
    width = own["cross_attention_dim"] if attention is None else attention
    shape = {"cross_attention_dim": width, "projection_class_embeddings_input_dim": _WIDTH + numbers * _EMBEDDED}
    assert own["addition_time_embed_dim"] == _EMBEDDED
    assert own["sample_size"] == NATIVE // 8
    return UNet2DConditionModel.from_config({**own, **shape, **config})
