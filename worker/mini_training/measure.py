"""Draws pictures with mini and lets the judge count what is right in them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from latentfarm_worker.mini import MODEL_DIR
from mini_training import captions, world
from mini_training.judge import judge, matches, pair_matches
from mini_training.vae_stage import to_pictures, to_tensor

STEPS = 25
GUIDANCE = 4.0
BATCH = 20

Wanted = TypeVar("Wanted")


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures of some prompts, and the CPU seconds that each took."""

    pictures: list[world.Image]
    cpu_per_picture: float


def load_pipeline(where: Path = MODEL_DIR) -> StableDiffusionPipeline:
    """Mini, ready to draw on the CPU."""
    pipe = StableDiffusionPipeline.from_pretrained(where, safety_checker=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_prompts(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Drawn:
    """One picture per prompt, number i from seed ``seed + i``."""
    pictures: list[world.Image] = []
    before = time.process_time()
    for first in range(0, len(prompts), BATCH):
        some = list(prompts[first : first + BATCH])
        seeds = [torch.Generator().manual_seed(seed + first + i) for i in range(len(some))]
        values = pipe(
            some, num_inference_steps=steps, guidance_scale=guidance, generator=seeds, output_type="np"
        ).images
        pictures.extend((values * 255).round().astype(np.uint8))
    return Drawn(pictures, (time.process_time() - before) / len(prompts))


def held_out_combinations(count: int, seed: int = 0) -> list[world.Combination]:
    """``count`` different combinations that training never saw."""
    unseen = [c for c in world.combinations() if world.is_held_out(c)]
    order = np.random.default_rng([seed, 500]).permutation(len(unseen))
    return [unseen[i] for i in order[:count]]


def scenes_of(combinations: Iterable[world.Combination], seed: int = 0) -> list[world.Scene]:
    """Return a drawn-up scene of each combination."""
    rng = np.random.default_rng([seed, 501])
    return [world.scene_of(c, rng) for c in combinations]


def shares(
    pictures: Sequence[world.Image],
    wanted: Sequence[Wanted],
    check: Callable[[world.Image, Wanted], dict[str, bool]],
) -> dict[str, float]:
    """Return the share of pictures in which each thing is right, and in which everything is ("all")."""
    counts: Counter[str] = Counter()
    for picture, want in zip(pictures, wanted, strict=True):
        right = check(picture, want)
        counts.update({**{k: int(v) for k, v in right.items()}, "all": int(all(right.values()))})
    return {name: count / len(pictures) for name, count in counts.items()}


def check_single(picture: world.Image, wanted: world.Combination) -> dict[str, bool]:
    """Tell what of a combination a picture got right."""
    return matches(judge(picture), wanted)


def check_pair(picture: world.Image, wanted: world.Scene) -> dict[str, bool]:
    """Tell what of a scene of two things a picture got right."""
    return pair_matches(judge(picture), wanted)


def full_captions(combinations: Sequence[world.Combination]) -> list[str]:
    """Return the plain full caption of each combination."""
    return [captions.full_caption(scene) for scene in scenes_of(combinations)]


def thai_caption(combination: world.Combination) -> str:
    """Return the same in Thai: a shape in its colour, size, place, background."""
    shape, colour, background, place, size = combination
    thing = captions.THAI_SHAPES[shape] + captions.THAI_COLOURS[colour] + captions.THAI_SIZES[size]
    return f"{thing} {captions.THAI_PLACES[place]} พื้นหลัง{captions.THAI_COLOURS[background]}"


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, pictures: Sequence[world.Image]) -> list[float]:
    """Peak signal-to-noise ratio in dB of each picture after encoding and decoding."""
    values = []
    for first in range(0, len(pictures), 50):
        some = list(pictures[first : first + 50])
        rebuilt = to_pictures(vae.decode(vae.encode(to_tensor(some)).latent_dist.mean).sample)
        for before, after in zip(some, rebuilt, strict=True):
            error = np.square(before.astype(np.float64) - after.astype(np.float64)).mean()
            values.append(float(10 * np.log10(255**2 / max(error, 1e-9))))
    return values


def is_valid(picture: world.Image) -> bool:
    """Whether a picture has a named background and at least one object of a known colour."""
    verdict = judge(picture)
    return verdict.background != "" and any(seen.colour for seen in verdict.things)
