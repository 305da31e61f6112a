"""Train the text encoder to distinguish a scene's parts, before any image is involved.

Linear heads read background, colours, shapes, place and size from every token at and after the end
token.  Cross-attention later finds the same facts there, so that the denoiser need not teach the
text encoder to read and learn to draw at the same time.  The heads are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from mini_training import captions, world
from mini_training.loop import Stage, TrainingPlan, device, mixed
from mini_training.nets import Sizes, build_text

_COLOURS, _SHAPES = list(world.COLOURS), list(world.SHAPES)
_PLACES, _SIZES = ["", *world.PLACES], ["", *world.SIZES]
# Classes of each head; class 0 of the second thing's heads means that there is none.
HEADS = {
    "background": len(_COLOURS),
    "colour": len(_COLOURS),
    "shape": len(_SHAPES),
    "place": len(_PLACES),
    "size": len(_SIZES),
    "second_colour": len(_COLOURS) + 1,
    "second_shape": len(_SHAPES) + 1,
}


def targets(scene: world.Scene) -> list[int]:
    """Return the class of each head for a scene, in the order of ``HEADS``."""
    first = scene.things[0]
    second = scene.things[1] if len(scene.things) > 1 else None
    return [
        _COLOURS.index(scene.background),
        _COLOURS.index(first.colour),
        _SHAPES.index(first.shape),
        _PLACES.index(scene.place),
        _SIZES.index(scene.size),
        _COLOURS.index(second.colour) + 1 if second else 0,
        _SHAPES.index(second.shape) + 1 if second else 0,
    ]


def encode_texts(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Return token ids (B, 77), padded and truncated as Stable Diffusion's pipeline does."""
    ids: torch.Tensor = tokenizer(
        list(texts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def head_scores(text: CLIPTextModel, heads: torch.nn.Linear, ids: torch.Tensor) -> list[torch.Tensor]:
    """Return each head's scores, (B, 77, classes)."""
    hidden = text(ids).last_hidden_state
    return list(heads(hidden).split(list(HEADS.values()), dim=-1))


def text_loss(text: CLIPTextModel, heads: torch.nn.Linear, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the heads over the end token and the padding after it."""
    with mixed(ids.device):
        scores = head_scores(text, heads, ids)
    after = ids == text.config.eos_token_id
    loss = torch.zeros((), device=ids.device)
    for number, score in enumerate(scores):
        goal = wanted[:, number, None].expand(ids.shape)
        loss = loss + torch.nn.functional.cross_entropy(score.float()[after], goal[after])
    return loss / len(scores)


@torch.no_grad()
def reading_accuracy(
    text: CLIPTextModel, heads: torch.nn.Linear, tokenizer: CLIPTokenizer, count: int = 500
) -> dict[str, float]:
    """Return the accuracy of each head on full captions of new scenes."""
    rng = np.random.default_rng(12345)
    scenes = [world.training_scene(rng) for _ in range(count)]
    ids = encode_texts(tokenizer, [captions.full_caption(s) for s in scenes])
    wanted = torch.tensor([targets(s) for s in scenes])
    scores = head_scores(text, heads, ids.to(text.device))
    guesses = torch.stack([s[:, -1].argmax(-1).cpu() for s in scores], dim=1)
    right = (guesses == wanted).float().mean(0)
    return {name: float(share) for name, share in zip(HEADS, right, strict=True)}


def text_stage(plan: TrainingPlan, sizes: Sizes, folder: Path, tokenizer: CLIPTokenizer, batch: int) -> Stage:
    """Return the stage that trains the text encoder and its heads."""
    torch.manual_seed(plan.seed + 1)
    place = device()
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    text = build_text(sizes, len(tokenizer), end, start).to(place)
    heads = torch.nn.Linear(sizes.text_width, sum(HEADS.values())).to(place)

    def loss(rng: np.random.Generator, _noise: torch.Generator, _share: float) -> torch.Tensor:
        scenes = [world.training_scene(rng) for _ in range(batch)]
        ids = encode_texts(tokenizer, [captions.caption(s, rng) for s in scenes])
        wanted = torch.tensor([targets(s) for s in scenes])
        return text_loss(text, heads, ids.to(place), wanted.to(place))

    return Stage(plan, {"text": text, "heads": heads}, loss, folder)
