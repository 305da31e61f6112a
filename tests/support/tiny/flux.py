"""Tiny FLUX.1 models: ``flux``, shaped as dev, ``schnell``, and ``chroma``, which has T5 only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.tiny.files import write_clip_tokenizer, write_index, write_scheduler, write_t5_tokenizer
from tests.support.tiny.stable_diffusion import NATIVE, clip_text_encoder
from tests.support.tiny.transformers_parts import sharpen, t5_encoder, vae

#: of CLIP's pooled hidden states, and of T5's
_POOLED_WIDTH, _TEXT_WIDTH = 32, 64
#: tokens of a text; FLUX.1's has 512, which would only cost time
_TEXT_LENGTH = 48
_SCHEDULES: dict[str, dict[str, Any]] = {
    # tiny images have 16 to 64 tokens; so their shifts differ as those of images of 512 to 2048 pixels
    "flux": {
        "use_dynamic_shifting": True,
        "shift": 3.0,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 8,
        "max_image_seq_len": 64,
    },
    "chroma": {"use_dynamic_shifting": False, "use_beta_sigmas": True},
    "schnell": {"use_dynamic_shifting": False, "shift": 1.0, "base_shift": 0.5, "max_shift": 1.15},
}


def write(folder: Path, kind: str) -> None:
    """Write the model of a kind."""
    write_clip_tokenizer(folder / "tokenizer")
    write_t5_tokenizer(folder / "tokenizer_2", length=_TEXT_LENGTH)
    clip_text_encoder("CLIPTextModel", _POOLED_WIDTH, projected=_POOLED_WIDTH).save_pretrained(folder / "text_encoder")
    t5_encoder(_TEXT_WIDTH).save_pretrained(folder / "text_encoder_2")
    transformer = _transformer(guidance_embeds=kind == "flux")
    sharpen(transformer, 2.0)
    transformer.save_pretrained(folder / "transformer")
    vae(scaling_factor=0.3611, shift_factor=0.1159, side=NATIVE).save_pretrained(folder / "vae")
    parts = {
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", _SCHEDULES[kind]),
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_index(folder, "FluxPipeline", parts)


def _transformer(*, guidance_embeds: bool) -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_TEXT_WIDTH,
        pooled_projection_dim=_POOLED_WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )


def write_chroma(folder: Path, kind: str) -> None:
    """Write a Chroma model."""
    write_t5_tokenizer(folder / "tokenizer", length=_TEXT_LENGTH)
    t5_encoder(_TEXT_WIDTH).save_pretrained(folder / "text_encoder")
    transformer = _chroma_transformer()
    sharpen(transformer, 2.0)
    transformer.save_pretrained(folder / "transformer")
    vae(scaling_factor=0.3611, shift_factor=0.1159, side=NATIVE).save_pretrained(folder / "vae")
    parts = {
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", _SCHEDULES[kind]),
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "ChromaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_index(folder, "ChromaPipeline", parts)


def _chroma_transformer() -> Any:
    from diffusers import ChromaTransformer2DModel

    return ChromaTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_TEXT_WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
