"""The names, shapes and dtypes of the tensors in a safetensors file, from its header alone. No torch.

Format: https://huggingface.co/docs/safetensors: 8 bytes with the header's length, a JSON header, the tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentfarm.errors import ModelError

#: bits of a number by the name of its dtype in a header
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
#: the limit of the safetensors library
_MAX_HEADER = 100_000_000
#: beginnings of files that are saved under the wrong name
_OTHERS: Mapping[bytes, tuple[str, str]] = {
    b"PK\x03\x04": ("a zip file, as torch.save writes", "pickles run code: convert it to safetensors"),
    b"\x80": ("a pickle", "pickles run code: convert it to safetensors"),
    b"<": ("a web page", "download it again, signed in if its model requires that"),
    b"version https://git-lfs": ("a pointer of git LFS, not the file", "run `git lfs pull` or download it again"),
    b"\x1f\x8b": ("a gzip file", "unpack it"),
}
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: ``dtype`` as the header writes it, ``shape``, and ``size`` in bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def parameters(self) -> int:
        """The count of numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """A file's tensors by name, and the texts that it has about itself."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def licence(self) -> str | None:
        """The licence in the metadata, as https://github.com/Stability-AI/ModelSpec names it."""
        return self.metadata.get("modelspec.license") or self.metadata.get("license") or None


def read_tensor_file(path: Path) -> TensorFile:
    """Return the header of a safetensors file.

    Raises:
        ModelError: the file is missing, is something else, or is damaged.
    """
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{path}: latentfarm loads safetensors and GGUF only, since pickles run code; use the model's .safetensors"
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:8], "little")
            _reject_other_content(path, start, size, length)
            file.seek(8)
            header = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}; check the path and its mode") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _damaged(path, "its metadata is not a JSON object")
    tensors = _tensors(path, header, data_size=size - 8 - length)
    return TensorFile(path, tensors, {str(key): str(value) for key, value in metadata.items()})


def _reject_other_content(path: Path, start: bytes, size: int, length: int) -> None:
    if not size:
        raise ModelError(f"{path}: is empty; download it again")
    for magic, (kind, cure) in _OTHERS.items():
        # a header's length can begin with these bytes, but then a brace follows it
        if start.lstrip().startswith(magic) and start[8:9] != b"{":
            raise ModelError(f"{path}: is {kind}, not safetensors; {cure}")
    if size < 8 or start[8:9] not in {b"{", b""}:
        raise ModelError(f"{path}: is not a safetensors file; name a .safetensors or .gguf file, or a diffusers folder")
    if length > min(size - 8, _MAX_HEADER):
        raise _damaged(path, f"its header has {length} bytes, but the file only {size}")


def _tensors(path: Path, header: Mapping[str, Any], *, data_size: int) -> dict[str, TensorInfo]:
    tensors, places = {}, []
    for name, entry in header.items():
        begin, tensors[name] = _tensor(path, name[:80], entry)
        places.append((begin, begin + tensors[name].size))
    if not tensors:
        raise ModelError(f"{path}: holds no tensor; download it again")
    at = 0
    for begin, end in sorted(places):
        if begin != at:
            raise _damaged(path, "its tensors overlap or leave gaps")
        at = end
    if at != data_size:
        difference = f"{at - data_size} bytes are missing" if at > data_size else f"{data_size - at} bytes too many are"
        raise _damaged(path, f"{difference} at its end")
    return tensors


def _tensor(path: Path, name: str, entry: Any) -> tuple[int, TensorInfo]:
    """Return where a tensor begins, and the tensor."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, f"the header's entry of {name!r} is not that of a tensor") from error
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or not isinstance(dtype, str):
        raise _damaged(path, f"the header's entry of {name!r} is not that of a tensor")
    if dtype not in DTYPE_BITS:
        raise ModelError(f"{path}: {name} has the dtype {dtype[:20]!r}, which is unknown here; convert the file")
    if math.prod(shape) * DTYPE_BITS[dtype] != (end - begin) * 8:
        raise _damaged(path, f"the size of {name!r} does not match its shape")
    return begin, TensorInfo(dtype, shape, end - begin)


def _damaged(path: Path, problem: str) -> ModelError:
    return ModelError(f"{path}: is damaged: {problem}; download it again")
