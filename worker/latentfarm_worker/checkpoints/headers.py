"""Read what a file of weights holds, in any format. No torch."""

from __future__ import annotations

from pathlib import Path

from latentfarm_worker.checkpoints.gguf_file import read_gguf_file
from latentfarm_worker.checkpoints.tensor_file import TensorFile, read_tensor_file


def read_header(path: Path) -> TensorFile:
    """Return the names, shapes and dtypes of the tensors in a safetensors or GGUF file.

    Raises:
        ModelError: the file is missing, is something else, or is damaged.
    """
    return read_gguf_file(path) if path.suffix.lower() == ".gguf" else read_tensor_file(path)
