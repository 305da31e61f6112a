"""Models of published shapes with random weights: their images cost as much as those of the published weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.support import flow_shapes, sd15, sdxl
from tests.support.tiny import Kind, make_tiny

EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "prediction_type": "epsilon"}
#: FLUX.1 dev's and SD 3.5 large's own
_DYNAMIC_SHIFT = {"use_dynamic_shifting": True, "base_image_seq_len": 256, "max_image_seq_len": 4096}
_STATIC_SHIFT = {"use_dynamic_shifting": False, "shift": 3.0}


@dataclass(frozen=True)
class FullSize:
    """A model of published shapes.

    Attributes:
        title: its name, for a table.
        kind: of the tiny model whose tokenizers it has. They have single bytes, which does not change the cost.
        models: makes the models on torch's default device.
        parameters: those of the published weights, by part.
        side: pixels of the native size.
        steps: guided steps of an image.
        tflop: floating point operations of an image, by torch's FlopCounterMode; 0 if it is not compared.
        scheduler: entries of the scheduler's config.
        text_tokens: tokens of T5's texts.
    """

    title: str
    kind: Kind
    models: Callable[[], dict[str, Any]]
    parameters: Mapping[str, int]
    side: int
    steps: int
    tflop: float = 0.0
    scheduler: Mapping[str, Any] = field(default_factory=lambda: EULER)
    text_tokens: int = 0

    def write(self, folder: Path, *, dtype: torch.dtype, device: str) -> Path:
        """Write the model as a diffusers folder, made on ``device``, and return it.

        Raises:
            RuntimeError: The number of parameters differs from the published one.
        """
        make_tiny(folder, kind=self.kind)
        torch.manual_seed(0)
        with torch.device(device):
            made = self.models()
        counted = {name: count for name, count in count_parameters(made).items() if name in self.parameters}
        if counted != self.parameters:
            raise RuntimeError(f"parameters are {counted}, published are {self.parameters}")
        for name, model in made.items():
            model.to(dtype).save_pretrained(folder / name)
        use_scheduler(folder, self.scheduler)
        for tokenizer in ("tokenizer_2", "tokenizer_3"):
            file = folder / tokenizer / "tokenizer_config.json"
            if self.text_tokens and file.is_file() and "T5" in file.read_text():
                file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": self.text_tokens}))
        return folder


#: 20 x 2 x 803.3 GFLOP of the U-Net, 2,514.5 of the decoder, 2 x 13.3 of the text encoder
SD15 = FullSize("Stable Diffusion 1.5", "sd1", sd15.models, sd15.PARAMETERS, side=512, steps=20, tflop=34.7)
#: 30 x 2 x 6,761.2 GFLOP of the U-Net, 10,470.4 of the decoder, 2 x 111.2 of the text encoders
SDXL = FullSize("Stable Diffusion XL", "sdxl", sdxl.models, sdxl.PARAMETERS, side=1024, steps=30, tflop=416.4)
#: 28 x 74,384.7 GFLOP of the transformer, 10,472.2 of the decoder
FLUX1 = FullSize(
    "FLUX.1 dev",
    "flux",
    flow_shapes.flux1_models,
    flow_shapes.FLUX1_PARAMETERS,
    side=1024,
    steps=28,
    tflop=2093.2,
    scheduler=_DYNAMIC_SHIFT,
    text_tokens=512,
)
#: 28 x 2 x 31,121.1 GFLOP of the transformer, 10,472.2 of the decoder
SD35 = FullSize(
    "Stable Diffusion 3.5 large",
    "sd3",
    flow_shapes.sd35_models,
    flow_shapes.SD35_PARAMETERS,
    side=1024,
    steps=28,
    tflop=1753.3,
    scheduler=_STATIC_SHIFT,
    text_tokens=256,
)
SMALL_FLUX1 = FullSize(
    "FLUX.1 dev's kind with 52 M parameters",
    "flux",
    flow_shapes.small_flux1_models,
    {"transformer": flow_shapes.SMALL_FLUX1_PARAMETERS},
    side=256,
    steps=20,
    scheduler=_DYNAMIC_SHIFT,
    text_tokens=128,
)
SMALL_SD3 = FullSize(
    "SD 3's kind with 45 M parameters",
    "sd3",
    flow_shapes.small_sd3_models,
    {"transformer": flow_shapes.SMALL_SD3_PARAMETERS},
    side=256,
    steps=20,
    scheduler=_STATIC_SHIFT,
    text_tokens=256,
)


def count_parameters(made: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of parameters of each model."""
    return {name: sum(each.numel() for each in model.parameters()) for name, model in made.items()}


def use_scheduler(folder: Path, entries: Mapping[str, Any]) -> None:
    """Change entries of the scheduler's config in a model's folder, its class among them."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps(config, indent=2))
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", config["_class_name"]]}))
