"""Train mini-flow from random weights and write its diffusers folder.

    python -m mini_training.train_flow --work build/mini-flow --hours 1.5

Run it in ``worker/``, which is not installed. Autoencoder and CLIP encoder are mini's. It has four stages: build the
T5's tokenizer, train the T5 on captions, cache latents, train transformer and T5 together. Each is resumable: after an
interruption, run the command again.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from latentfarm_worker.mini import FLOW_DIR, MODEL_DIR
from mini_training.export import averaged
from mini_training.flow_export import complete_embeddings, export_flow, flow_pipeline
from mini_training.flow_nets import FLOW_FULL, FLOW_TINY, FlowSizes
from mini_training.flow_stage import Readers, flow_stage
from mini_training.flow_text_stage import flow_text_stage
from mini_training.flow_tokenizer import build_flow_tokenizer
from mini_training.loop import TrainingPlan, log
from mini_training.nets import TINY, parameters_of
from mini_training.unet_stage import cache_latents
from mini_training.world import NATIVE

# Share of the time budget.
TEXT_SHARE = 0.03


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """The settings of one training."""

    work: Path
    model: Path
    seconds: float
    # The folder that autoencoder and CLIP encoder come from.
    parts: Path = MODEL_DIR
    sizes: FlowSizes = FLOW_FULL
    side: int = NATIVE
    seed: int = 0
    # Only tests set a limit; else the time budget ends a stage.
    steps: int = 10**9
    scenes: int = 20_000
    batches: tuple[int, int] = (128, 48)
    compiled: bool = True

    def plan(self, name: str, share: float, rate: float, average: float) -> TrainingPlan:
        """Return the plan of one stage."""
        return TrainingPlan(name, self.seconds * share, self.steps, rate, self.seed, average=average)


def train_t5(settings: FlowSettings, tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Run the T5's stage; return the averaged encoder."""
    plan = settings.plan("t5", TEXT_SHARE, rate=2e-3, average=0.99)
    stage = flow_text_stage(plan, settings.sizes, settings.work, tokenizer, settings.batches[0])
    stage.run()
    return cast("T5EncoderModel", averaged(stage, "t5")).requires_grad_(requires_grad=True)


def cached(settings: FlowSettings, vae: AutoencoderKL) -> dict[str, Any]:
    """Return the scenes and their latents, with the scaling and the shift that give latents mean 0 and variance 1."""
    cache = cache_latents(vae, settings.side, settings.scenes, settings.seed, settings.work / "latents.pt")
    return {**cache, "shift": float(cache["latents"].float().mean())}


def train_flow(settings: FlowSettings) -> int:
    """Run all stages and write the folder; return its size in bytes."""
    clip_tokenizer = CLIPTokenizer.from_pretrained(settings.parts / "tokenizer")
    clip = CLIPTextModel.from_pretrained(settings.parts / "text_encoder", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(settings.parts / "vae").eval()
    words = settings.work / "tokenizer_2"
    tokenizer = build_flow_tokenizer(words)
    readers = Readers(
        clip.requires_grad_(requires_grad=False), clip_tokenizer, train_t5(settings, tokenizer), tokenizer
    )
    cache = cached(settings, vae.to(memory_format=torch.channels_last))
    plan = settings.plan("flow", 1 - TEXT_SHARE, rate=2.5e-3, average=0.999)
    stage = flow_stage(
        plan, settings.sizes, settings.work, readers, cache, settings.batches[1], compiled=settings.compiled
    )
    stage.run()
    transformer = cast("FluxTransformer2DModel", averaged(stage, "transformer")).cpu()
    t5 = cast("T5EncoderModel", averaged(stage, "t5")).cpu()
    log.info("parameters: %d, %d", *map(parameters_of, (transformer, t5)))
    complete_embeddings(t5, tokenizer)
    trained = replace(readers, t5=t5, clip=clip.cpu())
    pipe = flow_pipeline(vae.cpu(), trained, transformer, cache["scaling"], cache["shift"])
    return export_flow(pipe, settings.parts / "tokenizer", words, settings.model)


def parse(arguments: Sequence[str] | None = None) -> FlowSettings:
    """Return the settings of a command line."""
    parser = argparse.ArgumentParser(prog="mini_training.train_flow", description="Train mini-flow.")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, cached latents")
    parser.add_argument("--model", type=Path, default=FLOW_DIR, help="the diffusers folder to write")
    parser.add_argument("--parts", type=Path, default=MODEL_DIR, help="mini's folder [default: the bundled one]")
    parser.add_argument("--hours", type=float, default=1.5, help="time budget of all stages [default: 1.5]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch [default: one per core]")
    parser.add_argument("--tiny", action="store_true", help="tiny networks for a tiny mini, to try the code")
    parser.add_argument("--steps", type=int, default=10**9, help="maximum steps of each stage")
    parser.add_argument("--scenes", type=int, default=20_000, help="scenes to draw and cache [default: 20000]")
    given = parser.parse_args(arguments)
    if not (math.isfinite(given.hours) and given.hours > 0):
        parser.error("--hours must be a positive number")
    if given.threads:
        torch.set_num_threads(given.threads)
    return FlowSettings(
        work=given.work,
        model=given.model,
        seconds=given.hours * 3600,
        parts=given.parts,
        sizes=FLOW_TINY if given.tiny else FLOW_FULL,
        side=TINY.image if given.tiny else NATIVE,
        seed=given.seed,
        steps=given.steps,
        scenes=given.scenes,
        batches=(8, 4) if given.tiny else (128, 48),
        compiled=not given.tiny,
    )


def main() -> int:
    """Run ``python -m mini_training.train_flow``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    size = train_flow(parse())
    log.info("wrote %.2f MB", size / 1e6)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
