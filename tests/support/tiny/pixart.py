"""A tiny PixArt-Sigma model, ``pixart``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.tiny.files import write_index, write_scheduler, write_t5_tokenizer
from tests.support.tiny.stable_diffusion import NATIVE, vae
from tests.support.tiny.transformers_parts import sharpen, t5_encoder

_TEXT_WIDTH = 32
#: tokens of a text; PixArt-Sigma's has 300, which would only cost time
_TEXT_LENGTH = 48
_SCHEDULE = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
}


def write(folder: Path, kind: str) -> None:
    """Write the model."""
    del kind
    write_t5_tokenizer(folder / "tokenizer", length=_TEXT_LENGTH)
    t5_encoder(_TEXT_WIDTH).save_pretrained(folder / "text_encoder")
    _transformer().save_pretrained(folder / "transformer")
    vae(scaling_factor=0.13025).save_pretrained(folder / "vae")
    parts = {
        "scheduler": write_scheduler(folder, "DPMSolverMultistepScheduler", _SCHEDULE),
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_index(folder, "PixArtSigmaPipeline", parts)


def _transformer() -> Any:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        sample_size=NATIVE // 8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=_TEXT_WIDTH,
        # the noise and its variance
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    )
    sharpen(model, 2.0)
    return model
