"""GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): quantized weights.

The weights are read at load into the model's dtype: such a file is smaller on the disk, not in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints.tensor_file import TensorFile, TensorInfo

#: of a tensor whose shape GGUF cannot keep, by ComfyUI's converter
_SHAPE_KEY = "comfy.gguf.orig_shape."


def read_gguf_file(path: Path) -> TensorFile:
    """Return the header of a GGUF file. A tensor's dtype is its quantization, such as ``Q4_K``.

    Raises:
        ModelError: the file is missing, is something else or damaged, or the package gguf is not installed.
    """
    reader = _open(path)
    shapes = _original_shapes(reader)
    tensors = {}
    for tensor in reader.tensors:
        # GGUF writes the fastest dimension first
        shape = shapes.get(tensor.name) or tuple(int(each) for each in reversed(tensor.shape))
        tensors[tensor.name] = TensorInfo(tensor.tensor_type.name, shape, int(tensor.n_bytes))
    if not tensors:
        raise ModelError(f"{path}: holds no tensor; download it again")
    field = reader.fields.get("general.license")
    return TensorFile(path, tensors, {"license": str(field.contents())} if field else {})


def gguf_loader(path: Path) -> Callable[[str], Any]:
    """Return a function that returns a tensor of a GGUF file by name: float32, on the CPU.

    Raises:
        ModelError: as ``read_gguf_file``; the function, if a quantization is unknown.
    """
    import gguf
    import torch

    reader = _open(path)
    shapes = _original_shapes(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def load(name: str) -> torch.Tensor:
        tensor = tensors[name]
        shape = shapes.get(name) or tuple(int(each) for each in reversed(tensor.shape))
        try:
            numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ModelError(
                f"{path}: {name} has the quantization {tensor.tensor_type.name}, which the package gguf cannot read; "
                "use another quantization of the model, such as Q8_0 or Q4_K"
            ) from error
        except (ValueError, TypeError) as error:
            raise ModelError(f"{path}: {name} is damaged ({error}); download it again") from error
        # a copy, because the file may be open for reading only
        return torch.from_numpy(numbers.copy()).reshape(shape).float()

    return load


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(f"{path}: reading GGUF needs the package gguf: pip install 'latentfarm[gguf]'") from error
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path}: is not a GGUF file; download it again")
        return GGUFReader(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}; check the path and its mode") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error) as error:
        raise ModelError(f"{path}: is damaged ({error}); download it again") from error


def _original_shapes(reader: Any) -> dict[str, tuple[int, ...]]:
    return {
        key.removeprefix(_SHAPE_KEY): tuple(int(each) for each in field.contents())
        for key, field in reader.fields.items()
        if key.startswith(_SHAPE_KEY)
    }
