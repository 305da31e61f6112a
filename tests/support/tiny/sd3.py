"""Tiny Stable Diffusion 3 models: ``sd3``, and ``sd3-no-t5`` without the third text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.tiny.files import write_clip_tokenizer, write_index, write_scheduler, write_t5_tokenizer
from tests.support.tiny.stable_diffusion import NATIVE, clip_text_encoder
from tests.support.tiny.transformers_parts import sharpen, t5_encoder, vae

#: of the hidden states of CLIP's encoders, side by side less wide than T5's
_CLIP_WIDTHS, _TEXT_WIDTH = (32, 64), 128


def write(folder: Path, kind: str) -> None:
    """Write the model of a kind."""
    write_clip_tokenizer(folder / "tokenizer")
    write_clip_tokenizer(folder / "tokenizer_2", pad="!")
    for part, width in zip(("text_encoder", "text_encoder_2"), _CLIP_WIDTHS, strict=True):
        # the last layer is never read, so clip_skip can skip one of the other two
        encoder = clip_text_encoder("CLIPTextModelWithProjection", width, layers=3, projected=width)
        encoder.save_pretrained(folder / part)
    transformer = _transformer()
    sharpen(transformer, 2.0)
    transformer.save_pretrained(folder / "transformer")
    vae(scaling_factor=1.5305, shift_factor=0.0609, side=NATIVE).save_pretrained(folder / "vae")
    clip = {"text_encoder": "CLIPTextModelWithProjection", "text_encoder_2": "CLIPTextModelWithProjection"}
    parts: dict[str, Any] = {
        **{part: ["transformers", name] for part, name in clip.items()},
        **{part: ["transformers", "CLIPTokenizer"] for part in ("tokenizer", "tokenizer_2")},
        "text_encoder_3": [None, None],
        "tokenizer_3": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if kind == "sd3":
        t5_encoder(_TEXT_WIDTH).save_pretrained(folder / "text_encoder_3")
        write_t5_tokenizer(folder / "tokenizer_3", length=512)
        parts["text_encoder_3"] = ["transformers", "T5EncoderModel"]
        parts["tokenizer_3"] = ["transformers", "T5TokenizerFast"]
    write_index(folder, "StableDiffusion3Pipeline", parts)


def _transformer() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=NATIVE // 8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=_TEXT_WIDTH,
        pooled_projection_dim=sum(_CLIP_WIDTHS),
        pos_embed_max_size=12,
        # as SD3.5 medium
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
