"""Models of the shapes of FLUX.1 dev and Stable Diffusion 3.5 large with random weights, from their published configs.

https://huggingface.co/black-forest-labs/FLUX.1-dev, https://huggingface.co/stabilityai/stable-diffusion-3.5-large:
config.json of transformer, vae and the text encoders. T5-XXL, whose 4.8 billion parameters take longer to write than
all measurements, is replaced by a small encoder with as wide hidden states: prompts are encoded once, outside of steps.
"""

from __future__ import annotations

from typing import Any

from tests.support.sd15 import frozen, make_text_encoder, make_vae
from tests.support.sdxl import make_second_text_encoder
from tests.support.tiny.stable_diffusion import clip_text_encoder
from tests.support.tiny.transformers_parts import t5_encoder, vae

_T5_WIDTH = 4096
#: by part of the published weights, but T5
FLUX1_PARAMETERS = {"transformer": 11_901_408_320, "vae": 83_819_683, "text_encoder": 123_060_480}
SD35_PARAMETERS = {
    "transformer": 8_056_627_520,
    "vae": 83_819_683,
    "text_encoder": 123_650_304,
    "text_encoder_2": 694_659_840,
}
#: of the transformers of the small models, and of their hidden states for text
SMALL_FLUX1_PARAMETERS, SMALL_SD3_PARAMETERS = 52_216_384, 45_296_960
_SMALL_TEXT_WIDTH, _SMALL_POOLED = 256, 64


def flux1_models() -> dict[str, Any]:
    """Return FLUX.1 dev's models with random weights, on torch's default device."""
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=_T5_WIDTH,
        pooled_projection_dim=768,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    encoders = {"text_encoder": make_text_encoder(), "text_encoder_2": t5_encoder(_T5_WIDTH)}
    return frozen({"transformer": transformer, "vae": _vae(0.3611, 0.1159), **encoders})


def sd35_models() -> dict[str, Any]:
    """Return SD 3.5 large's models with random weights, on torch's default device."""
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=38,
        attention_head_dim=64,
        num_attention_heads=38,
        caption_projection_dim=2432,
        joint_attention_dim=_T5_WIDTH,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
        qk_norm="rms_norm",
    )
    encoders = {
        "text_encoder": make_text_encoder("CLIPTextModelWithProjection"),
        "text_encoder_2": make_second_text_encoder(),
        "text_encoder_3": t5_encoder(_T5_WIDTH),
    }
    return frozen({"transformer": transformer, "vae": _vae(1.5305, 0.0609), **encoders})


def small_flux1_models() -> dict[str, Any]:
    """Return models of FLUX.1 dev's kind, the transformer 240 times smaller; the native size is 256 x 256."""
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=8,
        attention_head_dim=64,
        num_attention_heads=8,
        joint_attention_dim=_SMALL_TEXT_WIDTH,
        pooled_projection_dim=_SMALL_POOLED,
        guidance_embeds=True,
        axes_dims_rope=(16, 24, 24),
    )
    encoders = {
        "text_encoder": clip_text_encoder("CLIPTextModel", _SMALL_POOLED, projected=_SMALL_POOLED),
        "text_encoder_2": t5_encoder(_SMALL_TEXT_WIDTH),
    }
    small_vae = vae(scaling_factor=0.3611, shift_factor=0.1159, side=256)
    return frozen({"transformer": transformer, "vae": small_vae, **encoders})


def small_sd3_models() -> dict[str, Any]:
    """Return models of SD 3's kind, the transformer 180 times smaller than 3.5 large's; native size 256 x 256."""
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=5,
        attention_head_dim=64,
        num_attention_heads=8,
        caption_projection_dim=512,
        joint_attention_dim=_SMALL_TEXT_WIDTH,
        pooled_projection_dim=2 * _SMALL_POOLED,
        pos_embed_max_size=64,
        qk_norm="rms_norm",
    )
    encoders = {
        part: clip_text_encoder("CLIPTextModelWithProjection", _SMALL_POOLED, layers=3, projected=_SMALL_POOLED)
        for part in ("text_encoder", "text_encoder_2")
    }
    small_vae = vae(scaling_factor=1.5305, shift_factor=0.0609, side=256)
    return frozen(
        {"transformer": transformer, "vae": small_vae, **encoders, "text_encoder_3": t5_encoder(_SMALL_TEXT_WIDTH)}
    )


def _vae(scaling_factor: float, shift_factor: float) -> Any:
    return make_vae(
        latent_channels=16,
        sample_size=1024,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
