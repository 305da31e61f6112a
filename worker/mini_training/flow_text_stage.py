"""Train mini-flow's T5 to distinguish a scene's parts, before any image is involved.

As mini's text encoder learns (``text_stage``), but every token from the end token on is read; T5 pads with tokens of
its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import T5EncoderModel, T5Tokenizer

from mini_training import captions, world
from mini_training.flow_nets import FlowSizes, build_flow_text
from mini_training.flow_tokenizer import FLOW_LENGTH
from mini_training.loop import Stage, TrainingPlan, device, mixed
from mini_training.text_stage import HEADS, targets


def flow_ids(tokenizer: T5Tokenizer, texts: list[str]) -> torch.Tensor:
    """Return token ids (B, 32), padded and truncated as FluxPipeline does with ``max_sequence_length=32``."""
    ids: torch.Tensor = tokenizer(
        texts, padding="max_length", max_length=FLOW_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def reading_loss(t5: T5EncoderModel, heads: torch.nn.Linear, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the heads over the end token and the padding after it.

    ``ids`` has shape (B, 32), ``wanted`` (B, heads).
    """
    with mixed(ids.device):
        scores = heads(t5(ids).last_hidden_state).float().split(list(HEADS.values()), dim=-1)
    after = (ids == t5.config.eos_token_id) | (ids == t5.config.pad_token_id)
    goals = wanted[:, :, None].expand(-1, -1, ids.shape[1])
    losses = [torch.nn.functional.cross_entropy(s[after], goals[:, n][after]) for n, s in enumerate(scores)]
    return torch.stack(losses).mean()


def flow_text_stage(plan: TrainingPlan, sizes: FlowSizes, folder: Path, tokenizer: T5Tokenizer, batch: int) -> Stage:
    """Return the stage that trains the T5 and its heads, which are thrown away."""
    torch.manual_seed(plan.seed + 4)
    place = device()
    t5 = build_flow_text(sizes, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id).to(place)
    heads = torch.nn.Linear(sizes.text_width, sum(HEADS.values())).to(place)

    def loss(rng: np.random.Generator, _noise: torch.Generator, _share: float) -> torch.Tensor:
        scenes = [world.training_scene(rng) for _ in range(batch)]
        ids = flow_ids(tokenizer, [captions.caption(s, rng) for s in scenes])
        wanted = torch.tensor([targets(s) for s in scenes])
        return reading_loss(t5, heads, ids.to(place), wanted.to(place))

    return Stage(plan, {"t5": t5, "heads": heads}, loss, folder)
