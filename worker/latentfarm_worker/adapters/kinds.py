"""Which kind of adapter a file or a folder is, by the names in its headers and configs. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from latentfarm.adapter_kind import AdapterKind
from latentfarm_worker.checkpoints.tensor_file import TensorInfo

SUFFIX = ".safetensors"
CONFIG = "config.json"
#: the folder of a refiner's U-Net in that of its pipeline
UNET = "unet"
#: numbers besides the text that a refiner is conditioned on: height, width, the crop's top and left, aesthetic score
REFINER_IDS = 5
#: parts of the names of a LoRA's tensors, as kohya, diffusers and peft write them, and of its relatives
_LORA = (
    *(".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.down.", ".lora.up.", "lora_linear_layer"),
    *(".lora_mid.", ".hada_w", ".lokr_w", ".dora_scale", ".oft_"),
)
#: parts of the names of a ControlNet's tensors, as diffusers and its authors write them
_CONTROLNET = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_blocks.", "input_hint_block.")
#: the names of the tensors of an embedding: A1111's, SDXL's of two text encoders
_EMBEDDINGS = frozenset({"emb_params", "clip_l", "clip_g"})


def kind_of_tensors(tensors: Mapping[str, TensorInfo]) -> AdapterKind | None:
    """Return the kind of a safetensors file, or None if it is no adapter."""
    if any(part in name for name in tensors for part in _LORA):
        return AdapterKind.LORA
    if any(name.startswith(("ip_adapter.", "image_proj.")) for name in tensors):
        return AdapterKind.IP_ADAPTER
    if any(part in name for name in tensors for part in _CONTROLNET):
        return AdapterKind.CONTROLNET
    vectors = all(1 <= len(tensor.shape) <= 2 for tensor in tensors.values())
    # diffusers names the only tensor after its token, such as <cat-toy>
    if vectors and (tensors.keys() <= _EMBEDDINGS or len(tensors) == 1):
        return AdapterKind.EMBEDDING
    return None


def kind_of_files(
    names: list[str], read_text: Callable[[str], bytes], read_header: Callable[[str], Mapping[str, TensorInfo]]
) -> tuple[AdapterKind, str] | None:
    """Return the kind of a folder and which of its files or folders it is; an empty name: the whole folder.

    A ControlNet is a folder with a config; a refiner is that of a U-Net, or is inside that of a pipeline. An IP-Adapter
    needs the folder, because its image encoder is beside it. Another folder has one file with weights.

    Args:
        names: the files, relative to the folder.
        read_text: returns a file's bytes.
        read_header: returns a safetensors file's tensors.
    """
    if CONFIG in names and "ControlNet" in _class_name(read_text(CONFIG)):
        return AdapterKind.CONTROLNET, ""
    for folder in ("", UNET):
        config = f"{folder}/{CONFIG}".lstrip("/")
        if config in names and is_refiner(_read(read_text(config))):
            return AdapterKind.REFINER, folder
    for name in sorted(name for name in names if name.endswith(SUFFIX) and "/" not in name):
        kind = kind_of_tensors(read_header(name))
        if kind is not None:
            whole = kind is AdapterKind.IP_ADAPTER and any("/" in other for other in names)
            return kind, "" if whole else name
    return None


def is_refiner(config: Mapping[str, Any]) -> bool:
    """Return whether a config is that of the U-Net of Stable Diffusion XL's refiner.

    It attends to the second text encoder alone, whose states are as wide as its projection, and is conditioned on five
    numbers; a base model is on six.
    """
    if config.get("_class_name") != "UNet2DConditionModel" or config.get("addition_embed_type") != "text_time":
        return False
    keys = ("cross_attention_dim", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
    width, embedded, added = (config.get(key) for key in keys)
    numbers = all(isinstance(each, int) for each in (width, embedded, added))
    return numbers and added == width + REFINER_IDS * embedded  # type: ignore[operator]


def _class_name(text: bytes) -> str:
    return str(_read(text).get("_class_name", ""))


def _read(text: bytes) -> Mapping[str, Any]:
    try:
        config: Any = json.loads(text)
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}
