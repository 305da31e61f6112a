"""A model of Stable Diffusion XL's shapes with random weights, from its published configuration files.

https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0: config.json of unet, vae, text_encoder and
text_encoder_2.
"""

from __future__ import annotations

from typing import Any

from tests.support.sd15 import CLIP, frozen, make_text_encoder, make_vae

#: parameters of the published weights
PARAMETERS = {
    "unet": 2_567_463_684,
    "vae": 83_653_863,
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
}


def models() -> dict[str, Any]:
    """Return the four models with random weights, on torch's default device."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = make_vae(sample_size=1024, scaling_factor=0.13025, force_upcast=True)
    encoders = {"text_encoder": make_text_encoder(), "text_encoder_2": make_second_text_encoder()}
    return frozen({"unet": unet, "vae": vae, **encoders})


def make_second_text_encoder() -> Any:
    """Return OpenCLIP ViT-bigG/14's text encoder, which is also the second one of SD 3 models."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        **CLIP,
        pad_token_id=0,
        hidden_size=1280,
        intermediate_size=5120,
        projection_dim=1280,
        num_hidden_layers=32,
        num_attention_heads=20,
        hidden_act="gelu",
    )
    return CLIPTextModelWithProjection(config)
