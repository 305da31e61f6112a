"""Tiny Z-Image models: ``zimage``, whose noise schedule has a static shift as Turbo's, and ``zimage-dynamic``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.support.tiny import qwen3
from tests.support.tiny.files import write_index, write_scheduler
from tests.support.tiny.stable_diffusion import NATIVE
from tests.support.tiny.transformers_parts import sharpen, vae

_TEXT_WIDTH = 32
_SCHEDULES: dict[str, dict[str, Any]] = {
    "zimage": {"shift": 3.0, "use_dynamic_shifting": False},
    # tiny images have 16 to 64 tokens; so their shifts differ as those of images of 512 to 2048 pixels
    "zimage-dynamic": {"use_dynamic_shifting": True, "base_image_seq_len": 8, "max_image_seq_len": 64},
}


def write(folder: Path, kind: str) -> None:
    """Write the model of a kind."""
    qwen3.write_tokenizer(folder / "tokenizer")
    qwen3.text_encoder("Qwen3Model", width=_TEXT_WIDTH).save_pretrained(folder / "text_encoder")
    _transformer().save_pretrained(folder / "transformer")
    vae(scaling_factor=0.3611, shift_factor=0.1159, side=NATIVE).save_pretrained(folder / "vae")
    parts = {
        "scheduler": write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", _SCHEDULES[kind]),
        "text_encoder": ["transformers", "Qwen3Model"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_index(folder, "ZImagePipeline", parts)


def _transformer() -> Any:
    from diffusers import ZImageTransformer2DModel

    model = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=_TEXT_WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    sharpen(model, 2.0)
    for token in (model.x_pad_token, model.cap_pad_token):
        torch.nn.init.normal_(token)
    return model
