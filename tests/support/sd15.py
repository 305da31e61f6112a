"""A model of Stable Diffusion 1.5's shapes with random weights, from its published configuration files.

https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5: unet, vae and text_encoder's config.json. Its
scheduler is Euler here, and its tokenizer has single bytes: neither changes the cost of an image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tests.support.tiny import make_tiny

#: parameters of the published weights
PARAMETERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
#: floating point operations of an image of 512 x 512 in 20 guided steps, counted with torch's FlopCounterMode:
#: 20 x 2 x 803.3 GFLOP of the U-Net, 2,514.5 of the decoder, 2 x 13.3 of the text encoder
TFLOP = 34.7


def models() -> dict[str, Any]:
    """Return the three models with random weights, on torch's default device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.18215,
    )
    clip = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        projection_dim=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    made = {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(clip)}
    for model in made.values():
        model.eval().requires_grad_(requires_grad=False)
    return made


def parameters(made: dict[str, Any]) -> dict[str, int]:
    """Return the number of parameters of each model."""
    return {name: sum(each.numel() for each in model.parameters()) for name, model in made.items()}


def use_euler(folder: Path) -> None:
    """Set the scheduler of a model's folder to Euler."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    euler = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "prediction_type": "epsilon"}
    file.write_text(json.dumps({**config, **euler}, indent=2))
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", euler["_class_name"]]}))


def write_sd15(folder: Path, *, dtype: torch.dtype, device: str) -> Path:
    """Write the model as a diffusers folder and return it. It is 2 GB in 16 bits, made on ``device``.

    Raises:
        RuntimeError: the number of parameters differs from the published one.
    """
    make_tiny(folder)
    torch.manual_seed(0)
    with torch.device(device):
        made = models()
    if parameters(made) != PARAMETERS:
        raise RuntimeError(f"parameters are {parameters(made)}, published are {PARAMETERS}")
    for name, model in made.items():
        model.to(dtype).save_pretrained(folder / name)
    use_euler(folder)
    return folder
