"""Tiny ControlNets with random weights, for the tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tests.support.tiny.transformers_parts import sharpen


def make_controlnet(folder: Path, base: Path, *, seed: int = 0, **config: Any) -> Path:
    """Write a net for the model in the folder ``base``, as a diffusers folder; return ``folder``.

    A net begins as a copy of its model with zeros where it joins it. Here these are random, so that the control image
    matters. ``config`` has what differs from the class's defaults.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _net_of(base, config)
        for name, parameter in net.named_parameters():
            if not parameter.any():
                spread = 0.25 if name.endswith("weight") else 0.02
                torch.nn.init.normal_(parameter, std=spread)
    net.save_pretrained(folder)
    return folder


def _net_of(base: Path, config: dict[str, Any]) -> Any:
    import diffusers

    name = json.loads((base / "model_index.json").read_text())["_class_name"]
    if name in {"StableDiffusionPipeline", "StableDiffusionXLPipeline"}:
        unet = diffusers.UNet2DConditionModel.from_pretrained(base / "unet", low_cpu_mem_usage=False)
        net = diffusers.ControlNetModel.from_unet(unet)
        return diffusers.ControlNetModel.from_config({**net.config, **config}) if config else net
    kind = diffusers.SD3ControlNetModel if name == "StableDiffusion3Pipeline" else diffusers.FluxControlNetModel
    own = json.loads((base / "transformer" / "config.json").read_text())
    net = kind.from_config({**own, "num_layers": 1, "_class_name": kind.__name__, **config})
    sharpen(net, 2.0)
    return net
