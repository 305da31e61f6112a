"""Models of published shapes with random weights: their images cost as much as those of the published weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.support import sd15, sdxl
from tests.support.tiny import Kind, make_tiny


@dataclass(frozen=True)
class FullSize:
    """A model of published shapes.

    Attributes:
        title: its name, for a table.
        kind: of the tiny model whose tokenizers it has. They have single bytes, which does not change the cost.
        models: makes the models on torch's default device.
        parameters: those of the published weights.
        side: pixels of the native size.
        steps: guided steps of an image.
        tflop: floating point operations of an image, by torch's FlopCounterMode.
    """

    title: str
    kind: Kind
    models: Callable[[], dict[str, Any]]
    parameters: Mapping[str, int]
    side: int
    steps: int
    tflop: float

    def write(self, folder: Path, *, dtype: torch.dtype, device: str) -> Path:
        """Write the model as a diffusers folder, made on ``device``, and return it. Its scheduler is Euler.

        Raises:
            RuntimeError: The number of parameters differs from the published one.
        """
        make_tiny(folder, kind=self.kind)
        torch.manual_seed(0)
        with torch.device(device):
            made = self.models()
        if count_parameters(made) != self.parameters:
            raise RuntimeError(f"parameters are {count_parameters(made)}, published are {self.parameters}")
        for name, model in made.items():
            model.to(dtype).save_pretrained(folder / name)
        use_euler(folder)
        return folder


#: 20 x 2 x 803.3 GFLOP of the U-Net, 2,514.5 of the decoder, 2 x 13.3 of the text encoder
SD15 = FullSize("Stable Diffusion 1.5", "sd1", sd15.models, sd15.PARAMETERS, side=512, steps=20, tflop=34.7)
#: 30 x 2 x 6,761.2 GFLOP of the U-Net, 10,470.4 of the decoder, 2 x 111.2 of the text encoders
SDXL = FullSize("Stable Diffusion XL", "sdxl", sdxl.models, sdxl.PARAMETERS, side=1024, steps=30, tflop=416.4)


def count_parameters(made: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of parameters of each model."""
    return {name: sum(each.numel() for each in model.parameters()) for name, model in made.items()}


def use_euler(folder: Path) -> None:
    """Set the scheduler of a model's folder to Euler."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    euler = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "prediction_type": "epsilon"}
    file.write_text(json.dumps({**config, **euler}, indent=2))
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", euler["_class_name"]]}))
