"""Train a LoRA of mini's denoiser on scenes drawn in one style (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from mini_training.adapter_data import Encoded
from mini_training.loop import Stage, TrainingPlan
from mini_training.unet_stage import noise_loss

RANK = 16
# Attention and feed-forward of every transformer block: what LoRAs of Stable Diffusion usually change.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


class LoraLayer(torch.nn.Module):
    """A low-rank change of one linear layer: (..., in) to (..., out)."""

    def __init__(self, base: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        self.lora_A = torch.nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = torch.nn.Linear(rank, base.out_features, bias=False)
        torch.nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        torch.nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.lora_B(self.lora_A(x))
        return change


class Lora(torch.nn.Module):
    """The changes of all target layers of a denoiser, added to their outputs while attached."""

    def __init__(self, unet: UNet2DConditionModel, rank: int = RANK) -> None:
        super().__init__()
        bases = {name: layer for name, layer in unet.named_modules() if name.endswith(TARGETS)}
        self.names = list(bases)
        self.layers = torch.nn.ModuleList(LoraLayer(base, rank) for base in bases.values())

    def attach(self, unet: UNet2DConditionModel) -> None:
        """Add the changes to a denoiser's layers from now on."""
        for name, layer in zip(self.names, self.layers, strict=True):
            unet.get_submodule(name).register_forward_hook(
                lambda _module, inputs, output, layer=layer: output + layer(inputs[0])
            )

    def read(self, path: Path) -> None:
        """Load a file that ``write`` has written."""
        tensors = load_file(path)
        for name, layer in zip(self.names, self.layers, strict=True):
            layer.load_state_dict(
                {f"{part}.weight": tensors[f"unet.{name}.{part}.weight"].float() for part in ("lora_A", "lora_B")}
            )

    def write(self, path: Path) -> int:
        """Write a float16 file for diffusers' ``load_lora_weights``; return its size in bytes."""
        tensors = {
            f"unet.{name}.{part}.weight": getattr(layer, part).weight.detach().half().contiguous()
            for name, layer in zip(self.names, self.layers, strict=True)
            for part in ("lora_A", "lora_B")
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"format": "pt"})
        return path.stat().st_size


def lora_stage(plan: TrainingPlan, folder: Path, unet: UNet2DConditionModel, data: Encoded, batch: int) -> Stage:
    """Return the stage that trains a LoRA; the denoiser keeps its weights and wears the LoRA from now on."""
    torch.manual_seed(plan.seed + 3)
    unet.requires_grad_(requires_grad=False)
    lora = Lora(unet)
    lora.attach(unet)

    def loss(rng: np.random.Generator, noise: torch.Generator, _share: float) -> torch.Tensor:
        _chosen, clean, hidden = data.pick(rng, batch)
        return noise_loss(unet, hidden, clean, noise)

    return Stage(plan, {"lora": lora}, loss, folder)
