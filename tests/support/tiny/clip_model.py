"""A CLIP model with random weights and few parameters: transformers' CLIPModel, its tokenizer and its preprocessing."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.support.tiny.files import CLIP_VOCABULARY, write_clip_tokenizer

#: pixels of a side of its input
SIDE = 32
_WIDTH, _PROJECTED = 32, 24


def write_clip_model(folder: Path) -> Path:
    """Write a CLIP model into a folder, which is created; return it."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    write_clip_tokenizer(folder)
    shared = {"hidden_size": _WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": CLIP_VOCABULARY, "max_position_embeddings": 77}
    tokens = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    vision = {"image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = CLIPConfig(
            text_config={**shared, **text, **tokens}, vision_config={**shared, **vision}, projection_dim=_PROJECTED
        )
        model = CLIPModel(config)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                # so that scores differ
                module.weight.normal_(std=0.3)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    return folder
