"""Write mini-flow's networks as a diffusers folder that FluxPipeline loads: fp16 safetensors."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import T5EncoderModel, T5Tokenizer

from mini_training.export import folder_bytes, tidy
from mini_training.flow_stage import Readers
from mini_training.flow_tokenizer import lower_case_ids

MOST_BYTES = 8_000_000
# The shift exp(mu) of sampling's noise levels grows with the image's tokens, as in FLUX.1: 64 at 128x128.
BASE_TOKENS, MOST_TOKENS = 64, 1024
BASE_SHIFT, MOST_SHIFT = 0.5, 1.15


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return the default sampler: Euler's method on the flow, its noise levels shifted by the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_image_seq_len=BASE_TOKENS,
        max_image_seq_len=MOST_TOKENS,
        base_shift=BASE_SHIFT,
        max_shift=MOST_SHIFT,
    )


def flow_pipeline(
    vae: AutoencoderKL, readers: Readers, transformer: FluxTransformer2DModel, scaling: float, shift: float
) -> FluxPipeline:
    """Return the pipeline of these parts, in float32."""
    vae.register_to_config(scaling_factor=scaling, shift_factor=shift)
    return FluxPipeline(
        scheduler=flow_scheduler(),
        vae=vae.eval(),
        text_encoder=readers.clip.eval(),
        tokenizer=readers.clip_tokenizer,
        text_encoder_2=readers.t5.eval(),
        tokenizer_2=readers.t5_tokenizer,
        transformer=transformer.eval(),
    )


@torch.no_grad()
def complete_embeddings(t5: T5EncoderModel, tokenizer: T5Tokenizer) -> None:
    """Set the embeddings that captions do not train.

    A word in capitals gets that of its lower-case form; the unknown token gets zeros, which say nothing.
    """
    table = t5.get_input_embeddings().weight
    table.copy_(table[lower_case_ids(tokenizer)])
    table[tokenizer.unk_token_id] = 0


def export_flow(pipe: FluxPipeline, clip_folder: Path, t5_folder: Path, where: Path) -> int:
    """Replace the folder and return its size in bytes; the tokenizers' folders are copied as they are."""
    if where.exists():
        shutil.rmtree(where)
    halved = copy.deepcopy(pipe).to(torch.float16)
    halved.save_pretrained(where, safe_serialization=True)
    for name, folder in (("tokenizer", clip_folder), ("tokenizer_2", t5_folder)):
        shutil.rmtree(where / name)
        shutil.copytree(folder, where / name)
    for config in where.glob("*/config.json"):
        tidy(config)
    return folder_bytes(where)
