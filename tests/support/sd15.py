"""A model of Stable Diffusion 1.5's shapes with random weights, from its published configuration files.

https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5: config.json of unet, vae and text_encoder.
"""

from __future__ import annotations

from typing import Any

#: parameters of the published weights
PARAMETERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
#: entries that all CLIP text encoders share
CLIP: dict[str, Any] = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 512,
    "eos_token_id": 513,
}


def models() -> dict[str, Any]:
    """Return the three models with random weights, on torch's default device."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    vae = make_vae(sample_size=512, scaling_factor=0.18215)
    return frozen({"unet": unet, "vae": vae, "text_encoder": make_text_encoder()})


def make_vae(**config: Any) -> Any:
    """Return the autoencoder of all Stable Diffusion models, with the entries that differ."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        **{"latent_channels": 4, **config},
    )


def make_text_encoder(kind: str = "CLIPTextModel") -> Any:
    """Return CLIP ViT-L/14's text encoder, which is also the first one of XL, SD 3 and FLUX.1 models."""
    import transformers

    config = transformers.CLIPTextConfig(
        **CLIP,
        pad_token_id=513,
        hidden_size=768,
        intermediate_size=3072,
        projection_dim=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        hidden_act="quick_gelu",
    )
    return getattr(transformers, kind)(config)


def frozen(models: dict[str, Any]) -> dict[str, Any]:
    """Return the models ready for inference."""
    for model in models.values():
        model.eval().requires_grad_(requires_grad=False)
    return models
