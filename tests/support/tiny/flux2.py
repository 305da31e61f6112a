"""Tiny FLUX.2 klein models: ``flux2``, shaped as base, and ``flux2-distilled``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.support.tiny import qwen3
from tests.support.tiny.files import write_index, write_scheduler
from tests.support.tiny.stable_diffusion import NATIVE
from tests.support.tiny.transformers_parts import sharpen

_TEXT_WIDTH = 32
#: channels of the VAE's latents, of which 2 x 2 are one of the transformer's
_LATENT_CHANNELS = 8
#: klein's
_SCHEDULE = {
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
}


def write(folder: Path, kind: str) -> None:
    """Write the model of a kind."""
    qwen3.write_tokenizer(folder / "tokenizer")
    qwen3.text_encoder("Qwen3ForCausalLM", width=_TEXT_WIDTH).save_pretrained(folder / "text_encoder")
    transformer = _transformer()
    sharpen(transformer, 2.0)
    transformer.save_pretrained(folder / "transformer")
    _vae().save_pretrained(folder / "vae")
    parts = {
        "is_distilled": kind == "flux2-distilled",
        "scheduler": write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", _SCHEDULE),
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    write_index(folder, "Flux2KleinPipeline", parts)


def _transformer() -> Any:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=4 * _LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        # the hidden states of three layers
        joint_attention_dim=3 * _TEXT_WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )


def _vae() -> Any:
    """Return a VAE whose packed latents have a mean and a variance of their own by channel."""
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        block_out_channels=(16, 16, 32, 32),
        latent_channels=_LATENT_CHANNELS,
        norm_num_groups=8,
        layers_per_block=1,
        sample_size=NATIVE,
    )
    torch.nn.init.normal_(vae.bn.running_mean, std=0.5)
    torch.nn.init.uniform_(vae.bn.running_var, 1.0, 9.0)
    return vae
