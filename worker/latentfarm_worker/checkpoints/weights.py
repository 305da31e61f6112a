"""Read the tensors of a file into memory: safetensors, those in float8 with their scales, and GGUF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints.gguf_file import gguf_loader
from latentfarm_worker.checkpoints.tensor_file import TensorFile

_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_FLOAT8 = {"F8_E4M3", "F8_E5M2"}
#: ComfyUI's names for the scale of a weight in float8, of today and before; and those of inputs, which are not used
_SCALES = (".weight_scale", ".scale_weight")
_NOT_WEIGHTS = (*_SCALES, ".input_scale", ".scale_input", ".comfy_quant", "scaled_fp8")


def read_weights(file: TensorFile, prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with ``prefix``, without it.

    Weights in float8 come in float32, times their scales where the file has any; others in their own dtype.

    Raises:
        ModelError: a weight has a format that cannot be read, or the file changed meanwhile.
    """
    names = [name for name in file.tensors if name.startswith(prefix) and not name.endswith(_NOT_WEIGHTS)]
    if file.path.suffix.lower() == ".gguf":
        load = gguf_loader(file.path)
        return {name.removeprefix(prefix): load(name) for name in names}
    _reject_quantized(file, names)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file.path, framework="pt") as opened:
            return {name.removeprefix(prefix): _read(opened.get_tensor, file, name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file.path}: cannot be read: {error}; download it again") from error


def _read(get_tensor: Callable[[str], Any], file: TensorFile, name: str) -> torch.Tensor:
    tensor: torch.Tensor = get_tensor(name)
    if file.tensors[name].dtype not in _FLOAT8:
        return tensor
    stem = name.removesuffix(".weight")
    scales = [stem + each for each in _SCALES if stem + each in file.tensors]
    return tensor.float() * get_tensor(scales[0]).float() if scales else tensor.float()


def _reject_quantized(file: TensorFile, names: list[str]) -> None:
    for name in names:
        dtype = file.tensors[name].dtype
        if name.endswith(".weight") and dtype not in _FLOATS:
            raise ModelError(
                f"{file.path}: {name} is quantized as {dtype}, as bitsandbytes, SVDQuant and NVFP4 files are; use a "
                "file in float16, bfloat16, float8 or GGUF"
            )
