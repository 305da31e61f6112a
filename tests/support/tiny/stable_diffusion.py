"""Tiny Stable Diffusion models: ``sd1``, ``sd2`` and ``sdxl``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.support.tiny.files import (
    CLIP_VOCABULARY,
    write_clip_tokenizer,
    write_index,
    write_scheduler,
)

#: pixels of a side
NATIVE = 64
_TEXT_WIDTH = 64
#: of sdxl: the widths of the encoders' hidden states, of the second projection, and of an embedded size
_TEXT_WIDTHS, _PROJECTED_WIDTH, _SIZE_WIDTH = (32, 64), 48, 32
#: the noise schedule of Stable Diffusion 1.x
SD_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd1": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "prediction_type": "epsilon"},
    "sd2": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "sdxl": {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon", "timestep_spacing": "leading"},
}


def write(folder: Path, kind: str) -> None:
    """Write the model of a kind."""
    parts = _write_parts_of_sdxl(folder) if kind == "sdxl" else _write_parts_of_sd(folder, kind)
    options = {**SD_SCHEDULE, **_SCHEDULERS[kind]}
    index = {
        "feature_extractor": [None, None],
        "scheduler": write_scheduler(folder, options.pop("_class_name"), options),
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **parts,
    }
    write_index(folder, index.pop("_class_name"), index)


def _write_parts_of_sd(folder: Path, kind: str) -> dict[str, Any]:
    """Write the modules; return the entries of model_index.json for this kind."""
    write_clip_tokenizer(folder / "tokenizer")
    clip_text_encoder("CLIPTextModel", _TEXT_WIDTH).save_pretrained(folder / "text_encoder")
    _unet(kind).save_pretrained(folder / "unet")
    vae(scaling_factor=0.18215).save_pretrained(folder / "vae")
    return {
        "_class_name": "StableDiffusionPipeline",
        "requires_safety_checker": False,
        "safety_checker": [None, None],
    }


def _write_parts_of_sdxl(folder: Path) -> dict[str, Any]:
    write_clip_tokenizer(folder / "tokenizer")
    write_clip_tokenizer(folder / "tokenizer_2", pad="!")
    first, second = _TEXT_WIDTHS
    # the last layer is never read, so clip_skip can skip one of the other two
    clip_text_encoder("CLIPTextModel", first, layers=3).save_pretrained(folder / "text_encoder")
    clip_text_encoder("CLIPTextModelWithProjection", second, layers=3, projected=_PROJECTED_WIDTH).save_pretrained(
        folder / "text_encoder_2"
    )
    _unet_of_sdxl().save_pretrained(folder / "unet")
    vae(scaling_factor=0.13025).save_pretrained(folder / "vae")
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "image_encoder": [None, None],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }


def clip_text_encoder(kind: str, width: int, *, layers: int = 2, projected: int = _TEXT_WIDTH) -> Any:
    """Return a CLIP text encoder, of the transformers class ``kind``."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=CLIP_VOCABULARY,
        hidden_size=width,
        intermediate_size=128,
        projection_dim=projected,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    model = getattr(transformers, kind)(config)
    for name, module in model.named_modules():
        if name.endswith("final_layer_norm"):
            # as in a trained encoder, the mean of the hidden states is not 0, so weighted prompts can be compared
            torch.nn.init.constant_(module.bias, 0.25)
    return model


def _unet(kind: str) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=NATIVE // 8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=4 if kind == "sd1" else (2, 4),
        use_linear_projection=kind == "sd2",
        norm_num_groups=8,
    )


def _unet_of_sdxl() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=NATIVE // 8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=sum(_TEXT_WIDTHS),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_SIZE_WIDTH,
        projection_class_embeddings_input_dim=_PROJECTED_WIDTH + 6 * _SIZE_WIDTH,
        norm_num_groups=8,
    )


def vae(*, scaling_factor: float) -> Any:
    """Return a VAE of four channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=NATIVE,
        scaling_factor=scaling_factor,
    )
