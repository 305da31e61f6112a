"""The parts that the tiny flow-matching models share: a T5 encoder, and a VAE of 16 channels."""

from __future__ import annotations

from typing import Any

import torch
from tests.support.tiny.files import T5_VOCABULARY


def t5_encoder(width: int) -> Any:
    """Return a T5 encoder of version 1.1, as SD3's and FLUX.1's, with hidden states of ``width``."""
    import transformers

    config = transformers.T5Config(
        vocab_size=T5_VOCABULARY,
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return transformers.T5EncoderModel(config)


def vae(*, scaling_factor: float, shift_factor: float, side: int) -> Any:
    """Return a VAE of 16 channels without the convolutions around its latents, as SD3's and FLUX.1's."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=side,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def sharpen(transformer: Any, factor: float) -> None:
    """Multiply the weights of a transformer's linear layers, so that its output depends on all its inputs."""
    with torch.no_grad():
        for module in transformer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(factor)
