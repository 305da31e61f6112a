"""Train mini's adapters and write them beside it: two LoRAs, a ControlNet and an embedding.

    python -m mini_training.train_adapters --work build/adapters

Run it in ``worker/``, which is not installed. Each adapter is a stage of its own and is resumable: after an
interruption, run the command again.
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import StableDiffusionPipeline

from latentfarm_worker.mini import ADAPTERS_DIR, MODEL_DIR
from mini_training import adapter_world, world
from mini_training.adapter_data import encoded
from mini_training.controlnet_stage import controlnet_stage, edge_maps, edge_scenes, write_controlnet
from mini_training.embedding_stage import Word, embedding_stage, nested_scenes
from mini_training.export import averaged
from mini_training.loop import TrainingPlan, log
from mini_training.lora_stage import Lora, lora_stage
from mini_training.measure import load_pipeline

STEPS = {"outlined": 700, "striped": 700, "edges": 1200, "nested": 500}
_RATES = {"outlined": 2e-3, "striped": 2e-3, "edges": 2e-3, "nested": 5e-3}

# White and red outlines are learned too slowly from the fifth of scenes that have them. With more of them, black
# stripes on dark colours were learned worse.
_RARE_SHARES = {"outlined": 0.35, "striped": 0.0}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one training."""

    work: Path
    adapters: Path
    model: Path = MODEL_DIR
    seed: int = 0
    # Only tests set other numbers.
    steps: int | None = None
    scenes: int = 3000
    batch: int = 32

    def plan(self, name: str) -> TrainingPlan:
        """Return the plan of one adapter. Its steps alone end it, so that the same command gives the same file."""
        return TrainingPlan(
            name,
            seconds=float("inf"),
            steps=self.steps or STEPS[name],
            rate=_RATES[name],
            seed=self.seed,
            warm_up=30,
            average=0.99,
            save_every=60,
            log_every=25,
        )

    def data(self, name: str) -> Path:
        """Return the file of an adapter's encoded scenes."""
        return self.work / f"{name}.data.pt"


def _pipeline(settings: Settings) -> StableDiffusionPipeline:
    """Return a pipeline that no adapter has changed."""
    pipe = load_pipeline(settings.model)
    pipe.unet.to(memory_format=torch.channels_last)
    return pipe


def train_lora(settings: Settings, style: str) -> int:
    """Train the LoRA of one style and write its file; return its size in bytes."""
    pipe = _pipeline(settings)
    scenes = adapter_world.style_scenes(settings.scenes, settings.seed, _RARE_SHARES[style])
    draw = functools.partial(adapter_world.draw, style)
    data = encoded(pipe, scenes, draw, settings.seed, settings.data(style))
    stage = lora_stage(settings.plan(style), settings.work, pipe.unet, data, settings.batch)
    stage.run()
    return cast("Lora", averaged(stage, "lora")).write(settings.adapters / f"{style}.safetensors")


def train_edges(settings: Settings) -> int:
    """Train the ControlNet of edges and write its folder; return its size in bytes."""
    pipe = _pipeline(settings)
    scenes = edge_scenes(settings.scenes, settings.seed)
    data = encoded(pipe, scenes, world.draw, settings.seed, settings.data("edges"))
    edges = edge_maps([world.draw(scene) for scene in scenes])
    stage = controlnet_stage(settings.plan("edges"), settings.work, pipe.unet, data, edges, settings.batch)
    stage.run()
    return write_controlnet(averaged(stage, "net"), settings.adapters / "edges")


def train_nested(settings: Settings) -> int:
    """Train the embedding ``<nested>`` and write its file; return its size in bytes."""
    pipe = _pipeline(settings)
    scenes = nested_scenes(settings.scenes, settings.seed)
    draw = functools.partial(adapter_world.draw, "nested")
    data = encoded(pipe, scenes, draw, settings.seed, settings.data("nested"))
    stage = embedding_stage(settings.plan("nested"), settings.work, pipe, data, scenes, settings.batch)
    stage.run()
    return cast("Word", stage.averages["word"]).write(settings.adapters / "nested.safetensors")


TRAINERS: dict[str, Callable[[Settings], int]] = {
    "outlined": functools.partial(train_lora, style="outlined"),
    "striped": functools.partial(train_lora, style="striped"),
    "edges": train_edges,
    "nested": train_nested,
}


def parse(arguments: Sequence[str] | None = None) -> tuple[Settings, list[str]]:
    """Return the settings of a command line and the adapters to train."""
    parser = argparse.ArgumentParser(prog="mini_training.train_adapters", description="Train mini's adapters.")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, encoded scenes")
    parser.add_argument("--adapters", type=Path, default=ADAPTERS_DIR, help="the folder to write")
    parser.add_argument("--only", choices=TRAINERS, nargs="+", default=list(TRAINERS), help="adapters [default: all]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="steps of each adapter [default: those that mini's were trained for]")
    parser.add_argument("--scenes", type=int, default=3000, help="scenes to draw and encode [default: 3000]")
    given = parser.parse_args(arguments)
    settings = Settings(given.work, given.adapters, seed=given.seed, steps=given.steps, scenes=given.scenes)
    return settings, given.only


def main() -> int:
    """Run ``python -m mini_training.train_adapters``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings, names = parse()
    settings.adapters.mkdir(parents=True, exist_ok=True)
    for name in names:
        log.info("%s: %d bytes", name, TRAINERS[name](settings))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
