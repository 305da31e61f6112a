"""The sizes of mini-flow's networks, and how to build them untrained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from transformers import T5Config, T5EncoderModel

from mini_training.nets import LATENT_CHANNELS

# Side of a token in latent pixels; a token holds 2 x 2 x 4 numbers.
PATCH = 2
TOKEN_CHANNELS = LATENT_CHANNELS * PATCH * PATCH


@dataclass(frozen=True, slots=True)
class FlowSizes:
    """Widths and depths. ``FLOW_FULL`` is the shipped model; ``FLOW_TINY`` is for tests."""

    heads: int
    head_width: int
    # Shares of a head's width that turn with (nothing, row, column).
    rotary: tuple[int, int, int]
    double_blocks: int
    single_blocks: int
    text_width: int
    text_layers: int
    pooled_width: int


FLOW_FULL = FlowSizes(4, 32, (4, 14, 14), 1, 6, 96, 3, 112)
FLOW_TINY = FlowSizes(2, 8, (2, 4, 2), 1, 1, 16, 1, 16)


def build_transformer(sizes: FlowSizes) -> FluxTransformer2DModel:
    """Return an untrained denoiser of packed latents (B, tokens, 16), conditioned on (B, 32, text_width) and a vector.

    Modulations and the output start at zero (adaLN-zero, Peebles and Xie 2023, arXiv 2212.09748): each block begins as
    the identity.
    """
    model = FluxTransformer2DModel(
        in_channels=TOKEN_CHANNELS,
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=sizes.head_width,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.text_width,
        pooled_projection_dim=sizes.pooled_width,
        guidance_embeds=False,
        axes_dims_rope=sizes.rotary,
    )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            modulates = ".norm" in name or name.startswith("norm_out")
            if modulates or name == "proj_out":
                torch.nn.init.zeros_(module.weight)
            else:
                torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return model


def build_flow_text(sizes: FlowSizes, vocabulary: int, pad: int, end: int) -> T5EncoderModel:
    """Return an untrained text encoder: token ids (B, 32) to (B, 32, text_width)."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=sizes.text_width,
        d_kv=sizes.text_width // 4,
        num_heads=4,
        d_ff=2 * sizes.text_width,
        num_layers=sizes.text_layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        pad_token_id=pad,
        eos_token_id=end,
        decoder_start_token_id=pad,
        use_cache=False,
    )
    return T5EncoderModel(config)
