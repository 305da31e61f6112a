"""Random LoRAs of a loaded model, in the forms that trainers write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from latentfarm_worker.adapters.catalogue import Catalogue, open_catalogue

#: what a LoRA changes, by the end of a module's name
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "time_emb_proj")
CONVOLUTIONS = (*LINEAR, "conv1", "conv2", "downsamplers.0.conv", "conv_shortcut")
_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def changes(
    family: Any, *, rank: int, seed: int, ends: tuple[str, ...] = LINEAR, text: bool = True, size: float = 0.3
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the random factors, down and up, of each changed weight by its name behind the part's.

    ``size`` is about that of the change of an output whose inputs have unit variance.
    """
    source = torch.Generator().manual_seed(seed)
    parts: dict[str, tuple[str, ...]] = {family.denoiser[0]: ends}
    if text:
        parts |= {part: _TEXT for part in family.encoder_parts if family.encoders[part].startswith("CLIP")}
    found = {}
    for part, names in parts.items():
        for name, module in family.modules[part].named_modules():
            if not name.endswith(tuple(f".{end}" for end in names)) or not hasattr(module, "weight"):
                continue
            outputs, *inputs = module.weight.shape
            down = torch.randn(rank, *inputs, generator=source) / torch.Size(inputs).numel() ** 0.5
            up = torch.randn(outputs, rank, *[1] * (len(inputs) - 1), generator=source) / rank**0.5
            found[f"{part}.{name}"] = down, up * size
    return found


def write_peft(path: Path, found: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Path:
    """Write a file as diffusers' ``save_lora_weights``."""
    tensors = {}
    for name, (down, up) in found.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down.contiguous(), up.contiguous()
    save_file(tensors, path)
    return path


def write_kohya(path: Path, found: Mapping[str, tuple[torch.Tensor, torch.Tensor]], *, alpha: float) -> Path:
    """Write a file as kohya's scripts, with an alpha. The names are those of diffusers' U-Net."""
    encoders = {name.partition(".")[0] for name in found if name.startswith("text_encoder")}
    one = {"unet": "lora_unet", "text_encoder": "lora_te"}
    prefixes = one if len(encoders) < 2 else {**one, "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    tensors = {}
    for name, (down, up) in found.items():
        part, _, module = name.partition(".")
        if part != "unet" and not module.startswith("text_model."):
            module = f"text_model.{module}"
        key = f"{prefixes[part]}_{module.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down.contiguous(), up.contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def damaged(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Rewrite a file with its tensors changed in place."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path


def catalogue_of(folder: Path, cache: Path) -> Catalogue:
    """Return the adapters in a folder."""

    def no_store(bucket: str) -> Any:
        raise AssertionError(bucket)

    return open_catalogue(str(folder), cache=cache, max_bytes=0, open_store=no_store)
