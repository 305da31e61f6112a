"""Render images with mini or mini-flow, by diffusers' own pipelines, and judge them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline, StableDiffusionPipeline
from numpy.typing import NDArray

from latentfarm_worker.mini import FLOW_DIR, MODEL_DIR
from mini_training import captions, world
from mini_training.judge import judge, matches, pair_matches
from mini_training.vae_stage import to_images, to_tensor

STEPS = 25
GUIDANCE = 4.0
FLOW_STEPS, FLOW_GUIDANCE = 8, 3.0
BATCH = 20

Pipeline: TypeAlias = StableDiffusionPipeline | FluxPipeline
Wanted = TypeVar("Wanted")


@dataclass(frozen=True, slots=True)
class Drawn:
    """Images of some prompts, and the CPU seconds of each."""

    images: list[world.Image]
    cpu_per_image: float


def load_pipeline(where: Path = MODEL_DIR) -> StableDiffusionPipeline:
    """Return mini's pipeline on the CPU."""
    pipe = StableDiffusionPipeline.from_pretrained(where, safety_checker=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_flow_pipeline(where: Path = FLOW_DIR) -> FluxPipeline:
    """Return mini-flow's pipeline on the CPU, in float32."""
    pipe = FluxPipeline.from_pretrained(where, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_any(where: Path) -> Pipeline:
    """Return the pipeline of a folder, mini's or mini-flow's, by its model_index.json."""
    flows = DiffusionPipeline.load_config(where)["_class_name"] == "FluxPipeline"
    return load_flow_pipeline(where) if flows else load_pipeline(where)


def recommended(pipe: Pipeline) -> tuple[int, float]:
    """Return the steps and the guidance scale of a pipeline's card."""
    return (FLOW_STEPS, FLOW_GUIDANCE) if isinstance(pipe, FluxPipeline) else (STEPS, GUIDANCE)


def draw_prompts(
    pipe: Pipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
) -> Drawn:
    """Render one image for each prompt; number i has the seed ``seed + i``.

    Steps and guidance are those of the model's card [default].
    """
    images: list[world.Image] = []
    usual = recommended(pipe)
    before = time.process_time()
    for first in range(0, len(prompts), BATCH):
        some = list(prompts[first : first + BATCH])
        seeds = [torch.Generator().manual_seed(seed + first + i) for i in range(len(some))]
        values = _values(pipe, some, seeds, steps or usual[0], usual[1] if guidance is None else guidance)
        images.extend((values * 255).round().astype(np.uint8))
    return Drawn(images, (time.process_time() - before) / len(prompts))


def _values(
    pipe: Pipeline, prompts: list[str], seeds: list[torch.Generator], steps: int, guidance: float
) -> NDArray[np.float32]:
    """Return a pipeline's images in [0, 1], (B, H, W, 3)."""
    shared = {"num_inference_steps": steps, "generator": seeds, "output_type": "np"}
    if isinstance(pipe, FluxPipeline):
        images = pipe(
            prompts,
            negative_prompt=[""] * len(prompts),
            true_cfg_scale=guidance,
            # FluxPipeline pads to 512 tokens without a mask; mini-flow was trained with 32.
            max_sequence_length=pipe.tokenizer_2.model_max_length,
            height=world.NATIVE,
            width=world.NATIVE,
            **shared,
        ).images
    else:
        images = pipe(prompts, guidance_scale=guidance, **shared).images
    values: NDArray[np.float32] = images
    return values


def held_out_combinations(count: int, seed: int = 0) -> list[world.Combination]:
    """Return ``count`` different combinations that are not in the training data."""
    unseen = [c for c in world.combinations() if world.is_held_out(c)]
    order = np.random.default_rng([seed, 500]).permutation(len(unseen))
    return [unseen[i] for i in order[:count]]


def scenes_of(combinations: Iterable[world.Combination], seed: int = 0) -> list[world.Scene]:
    """Return a scene of each combination."""
    rng = np.random.default_rng([seed, 501])
    return [world.scene_of(c, rng) for c in combinations]


def shares(
    images: Sequence[world.Image],
    wanted: Sequence[Wanted],
    check: Callable[[world.Image, Wanted], dict[str, bool]],
) -> dict[str, float]:
    """Return the share of images in which each property is right, and in which all are ("all")."""
    counts: Counter[str] = Counter()
    for image, want in zip(images, wanted, strict=True):
        right = check(image, want)
        counts.update({**{k: int(v) for k, v in right.items()}, "all": int(all(right.values()))})
    return {name: count / len(images) for name, count in counts.items()}


def check_single(image: world.Image, wanted: world.Combination) -> dict[str, bool]:
    """Return by word whether an image matches a combination."""
    return matches(judge(image), wanted)


def check_pair(image: world.Image, wanted: world.Scene) -> dict[str, bool]:
    """Return by property whether an image matches a scene of two objects."""
    return pair_matches(judge(image), wanted)


def full_captions(combinations: Sequence[world.Combination]) -> list[str]:
    """Return the plain full caption of each combination."""
    return [captions.full_caption(scene) for scene in scenes_of(combinations)]


def thai_caption(combination: world.Combination) -> str:
    """Return a Thai caption of each combination: shape, colour, size, place, background."""
    shape, colour, background, place, size = combination
    thing = captions.THAI_SHAPES[shape] + captions.THAI_COLOURS[colour] + captions.THAI_SIZES[size]
    return f"{thing} {captions.THAI_PLACES[place]} พื้นหลัง{captions.THAI_COLOURS[background]}"


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, images: Sequence[world.Image]) -> list[float]:
    """Return the peak signal-to-noise ratio in dB of each image after encoding and decoding."""
    values = []
    for first in range(0, len(images), 50):
        some = list(images[first : first + 50])
        rebuilt = to_images(vae.decode(vae.encode(to_tensor(some)).latent_dist.mean).sample)
        for before, after in zip(some, rebuilt, strict=True):
            error = np.square(before.astype(np.float64) - after.astype(np.float64)).mean()
            values.append(float(10 * np.log10(255**2 / max(error, 1e-9))))
    return values


def is_valid(image: world.Image) -> bool:
    """Return whether an image has a named background and at least one object of a known colour."""
    verdict = judge(image)
    return verdict.background != "" and any(seen.colour for seen in verdict.things)
