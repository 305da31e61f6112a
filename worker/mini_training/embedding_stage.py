"""Train the vectors of a new word, all weights being fixed: textual inversion (Gal et al. 2022, arXiv 2208.01618)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from mini_training import captions, world
from mini_training.adapter_data import Encoded
from mini_training.loop import Stage, TrainingPlan, mixed
from mini_training.text_stage import encode_texts
from mini_training.unet_stage import noise_loss

WORD = "<nested>"
VECTORS = 8
# In other shapes, whose middle is narrow, the fixed denoiser draws no hole at all; a ring has one already.
SHAPES = ("circle", "square", "heart")


def nested_scenes(count: int, seed: int) -> list[world.Scene]:
    """Return scenes of one thing of a shape that can be nested."""
    rng = np.random.default_rng([seed, 9])
    scenes: list[world.Scene] = []
    while len(scenes) < count:
        scene = world.single_scene(rng)
        if scene.things[0].shape in SHAPES:
            scenes.append(scene)
    return scenes


def with_word(text: str, shape: str) -> str:
    """Return a caption with the new word before the word of its shape: 'a red <nested> square'."""
    words = (*captions.SHAPE_WORDS[shape], captions.THAI_SHAPES[shape])
    named = next(word for word in words if word in text)
    return text.replace(named, f"{WORD} {named}")


def nested_caption(scene: world.Scene, rng: np.random.Generator) -> str:
    """Return a caption of a scene of one thing, with the new word."""
    return with_word(captions.caption(scene, rng), scene.things[0].shape)


class Word(torch.nn.Module):
    """The vectors (V, width) of a new word, which a pipeline's text encoder uses from now on."""

    def __init__(self, pipe: StableDiffusionPipeline, count: int = VECTORS) -> None:
        super().__init__()
        table = pipe.text_encoder.get_input_embeddings().weight
        self.vectors = torch.nn.Parameter(torch.randn(count, table.shape[1]) * table.detach().std())
        pipe.load_textual_inversion({WORD: self.vectors.detach().clone()}, token=WORD)
        names = [WORD, *(f"{WORD}_{number}" for number in range(1, count))]
        self.ids: list[int] = pipe.tokenizer.convert_tokens_to_ids(names)
        pipe.text_encoder.get_input_embeddings().register_forward_hook(self._replace)

    def _replace(self, _module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        for number, vector in zip(self.ids, self.vectors, strict=True):
            output = torch.where((inputs[0] == number)[..., None], vector, output)
        return output

    def write(self, path: Path) -> int:
        """Write a file for diffusers' ``load_textual_inversion``; return its size in bytes."""
        save_file({WORD: self.vectors.detach().half().contiguous()}, path, metadata={"format": "pt"})
        return path.stat().st_size


def token_ids(pipe: StableDiffusionPipeline, texts: list[str]) -> torch.Tensor:
    """Return the token ids (N, 77) of texts, the new word as all of its vectors."""
    return encode_texts(pipe.tokenizer, [pipe.maybe_convert_prompt(text, pipe.tokenizer) for text in texts])


def embedding_stage(
    plan: TrainingPlan,
    folder: Path,
    pipe: StableDiffusionPipeline,
    data: Encoded,
    scenes: list[world.Scene],
    batch: int,
) -> Stage:
    """Return the stage that trains the word's vectors; denoiser and text encoder keep their weights."""
    torch.manual_seed(plan.seed + 5)
    pipe.unet.requires_grad_(requires_grad=False)
    pipe.text_encoder.requires_grad_(requires_grad=False)
    word = Word(pipe)

    def loss(rng: np.random.Generator, noise: torch.Generator, _share: float) -> torch.Tensor:
        chosen, clean, _plain = data.pick(rng, batch)
        texts = [nested_caption(scenes[int(number)], rng) for number in chosen]
        with mixed(pipe.device):
            hidden = pipe.text_encoder(token_ids(pipe, texts)).last_hidden_state
        return noise_loss(pipe.unet, hidden.float(), clean, noise)

    return Stage(plan, {"word": word}, loss, folder)
