"""Tiny ControlNets with random weights, for the tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


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
                spread = 0.1 if name.endswith("weight") else 0.02
                torch.nn.init.normal_(parameter, std=spread)
    net.save_pretrained(folder)
    return folder


def _net_of(base: Path, config: dict[str, Any]) -> Any:
    import diffusers

    if (base / "unet").is_dir():
        unet = diffusers.UNet2DConditionModel.from_pretrained(base / "unet", low_cpu_mem_usage=False)
        net = diffusers.ControlNetModel.from_unet(unet)
        if config:
            net = diffusers.ControlNetModel.from_config({**net.config, **config})
        return net
    raise NotImplementedError
