"""Train mini from random weights and write its diffusers folder.

    python -m mini_training.train --work build/mini --hours 2

Run it in ``worker/``, which is not installed. It has four stages: build the tokenizer, train the text encoder on
captions, train the autoencoder, train the denoiser. Each is resumable: after an interruption, run the command again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from latentfarm_worker.mini import MODEL_DIR
from mini_training.export import averaged, export, pipeline
from mini_training.loop import TrainingPlan, log
from mini_training.nets import FULL, TINY, Sizes, parameters_of
from mini_training.text_stage import reading_accuracy, text_stage
from mini_training.tokenizer import build_tokenizer
from mini_training.unet_stage import cache_latents, unet_stage
from mini_training.vae_stage import vae_stage

# Shares of the time budget.
TEXT_SHARE, VAE_SHARE = 0.03, 0.3


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one training."""

    work: Path
    model: Path
    seconds: float
    sizes: Sizes = FULL
    seed: int = 0
    # Only tests set a limit; else the time budget ends a stage.
    steps: int = 10**9
    scenes: int = 16_000
    batches: tuple[int, int, int] = (64, 8, 48)

    def plan(self, name: str, share: float, rate: float, average: float) -> TrainingPlan:
        """Return the plan of one stage."""
        return TrainingPlan(name, self.seconds * share, self.steps, rate, self.seed, average=average)


def train_text(settings: Settings, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Run the text stage; return the averaged encoder."""
    plan = settings.plan("text", TEXT_SHARE, rate=2e-3, average=0.99)
    stage = text_stage(plan, settings.sizes, settings.work, tokenizer, settings.batches[0])
    stage.run()
    text = cast("CLIPTextModel", averaged(stage, "text"))
    heads = cast("torch.nn.Linear", averaged(stage, "heads"))
    log.info("text encoder reads %s", json.dumps(reading_accuracy(text, heads, tokenizer, count=200)))
    return text.requires_grad_(requires_grad=True)


def train_vae(settings: Settings) -> AutoencoderKL:
    """Run the autoencoder's stage; return the averaged autoencoder."""
    plan = settings.plan("vae", VAE_SHARE, rate=1.5e-3, average=0.998)
    stage = vae_stage(plan, settings.sizes, settings.work, settings.batches[1])
    stage.run()
    return cast("AutoencoderKL", averaged(stage, "vae")).eval()


def train(settings: Settings) -> int:
    """Run all stages and write the folder; return its size in bytes."""
    words = settings.work / "tokenizer"
    tokenizer = build_tokenizer(words)
    text = train_text(settings, tokenizer)
    vae = train_vae(settings)
    cache = cache_latents(vae, settings.sizes.image, settings.scenes, settings.seed, settings.work / "latents.pt")
    plan = settings.plan("unet", 1 - TEXT_SHARE - VAE_SHARE, rate=1e-3, average=0.998)
    stage = unet_stage(plan, settings.sizes, settings.work, text, tokenizer, cache, settings.batches[2])
    stage.run()
    unet = cast("UNet2DConditionModel", averaged(stage, "unet"))
    text_trained = cast("CLIPTextModel", averaged(stage, "text"))
    log.info("parameters: %d, %d, %d", *map(parameters_of, (vae, text_trained, unet)))
    pipe = pipeline(vae.cpu(), text_trained.cpu(), unet.cpu(), tokenizer, cache["scaling"])
    return export(pipe, words, settings.model)


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Return the settings of a command line."""
    parser = argparse.ArgumentParser(prog="mini_training.train", description="Train mini.")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, cached latents")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="the diffusers folder to write")
    parser.add_argument("--hours", type=float, default=2.0, help="time budget of all stages [default: 2]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the code")
    parser.add_argument("--steps", type=int, default=10**9, help="maximum steps of each stage")
    parser.add_argument("--scenes", type=int, default=16_000, help="scenes to draw and cache [default: 16000]")
    given = parser.parse_args(arguments)
    if not (math.isfinite(given.hours) and given.hours > 0):
        parser.error("--hours must be a positive number")
    return Settings(
        work=given.work,
        model=given.model,
        seconds=given.hours * 3600,
        sizes=TINY if given.tiny else FULL,
        seed=given.seed,
        steps=given.steps,
        scenes=given.scenes,
        batches=(8, 2, 4) if given.tiny else (64, 8, 48),
    )


def main() -> int:
    """Run ``python -m mini_training.train``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    size = train(parse())
    log.info("wrote %.2f MB", size / 1e6)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
