"""The weights of a part by diffusers' and transformers' names, from a file in its family's original names.

The conversions are diffusers' own (``diffusers.loaders.single_file_utils``), except where a file already has the names
but for a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

_FLUX_WIDTH = 3072
_FLUX_PARTS = 7  # query, key, value, and four times the width in the feed-forward network


def convert(family: str, part: str, tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Return a part's weights by the names of its class.

    Args:
        family: a family of ``layout.FAMILY_NAMES``.
        part: the sub-folder that a diffusers folder has for the part.
        tensors: the weights by their names in the file, without the part's prefix. It is used up.
        config: the config of the part's class.

    Raises:
        KeyError, IndexError, ValueError, RuntimeError: tensors are missing or have other shapes.
    """
    if part == "vae":
        return _vae(tensors, config)
    found: Tensors = _CONVERSIONS.get((family, part), _unchanged)(tensors, config)
    return found


def _unet(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders import single_file_utils

    prefixed = {single_file_utils.LDM_UNET_KEY + name: tensor for name, tensor in tensors.items()}
    converted: Tensors = single_file_utils.convert_ldm_unet_checkpoint(prefixed, dict(config))
    return converted


def _vae(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders import single_file_utils

    if any(name.startswith("decoder.up_blocks.") for name in tensors):
        # saved by diffusers; names of before 0.15 are for its own conversion, which the class does at load
        return tensors
    prefixed = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    converted: Tensors = single_file_utils.convert_ldm_vae_checkpoint(prefixed, dict(config))
    return converted


def _openclip(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders import single_file_utils

    width = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    layers = int(config["num_hidden_layers"])
    used = {name: tensor for name, tensor in tensors.items() if _layer_of(name) < layers}
    if used.get("text_projection", torch.empty(0)).shape[:1] != (config["hidden_size"],):
        # the conversion would take its rows for the width
        used.pop("text_projection", None)
    converted: Tensors = single_file_utils.convert_open_clip_checkpoint(width, used, prefix="")
    return converted


def _layer_of(name: str) -> int:
    found = re.match(r"transformer\.resblocks\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _clip_of_sd3(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    # as diffusers: the pipeline reads a projection that the original code does not have
    width = int(config["hidden_size"])
    return tensors | {"text_projection.weight": torch.eye(width)}


def _unchanged(tensors: Tensors, _config: Mapping[str, Any]) -> Tensors:
    return tensors


def _sd3(tensors: Tensors, _config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders import single_file_utils

    converted: Tensors = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(tensors)
    return converted


def _flux(tensors: Tensors, _config: Mapping[str, Any]) -> Tensors:
    """Convert the weights; the first matrices of the single blocks are split here, for any width."""
    from diffusers.loaders import single_file_utils

    split: Tensors = {}
    for name in [name for name in tensors if re.fullmatch(r"single_blocks\.\d+\.linear1\.(weight|bias)", name)]:
        index, kind = name.split(".")[1], name.split(".")[-1]
        width = tensors[name].shape[0] // _FLUX_PARTS
        pieces = torch.split(tensors[name], [width, width, width, tensors[name].shape[0] - 3 * width])
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        block = f"single_transformer_blocks.{index}"
        split |= {f"{block}.{each}.{kind}": piece for each, piece in zip(names, pieces, strict=True)}
        # diffusers splits the width of FLUX.1 only
        tensors[name] = torch.empty(_FLUX_PARTS * _FLUX_WIDTH, device="meta")
    converted: Tensors = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(tensors)
    return converted | split


def _flux2(tensors: Tensors, _config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders import single_file_utils

    converted: Tensors = single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers(tensors)
    return converted


def _z_image(tensors: Tensors, _config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders import single_file_utils

    # its conversion would rename these too, a second time
    done = {name: tensors.pop(name) for name in list(tensors) if name.startswith(("all_x_embedder", "all_final_layer"))}
    converted: Tensors = single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers(tensors)
    return converted | done


_CONVERSIONS: Mapping[tuple[str, str], Callable[[Tensors, Mapping[str, Any]], Tensors]] = {
    **{(family, "unet"): _unet for family in ("sd1", "sd2", "sdxl")},
    ("sd2", "text_encoder"): _openclip,
    ("sdxl", "text_encoder_2"): _openclip,
    ("sd3", "transformer"): _sd3,
    ("sd3", "text_encoder"): _clip_of_sd3,
    ("flux", "transformer"): _flux,
    ("flux2", "transformer"): _flux2,
    ("z_image", "transformer"): _z_image,
}
