"""Read a ControlNet or a refiner: a folder of diffusers, or a net's file in diffusers' or the authors' names."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from latentfarm.errors import JobError, ModelError
from latentfarm_worker.adapters.catalogue import Adapter
from latentfarm_worker.checkpoints.assembly import build
from latentfarm_worker.checkpoints.folder import read_json, weight_files
from latentfarm_worker.checkpoints.tensor_file import read_tensor_file
from latentfarm_worker.checkpoints.weights import read_weights

Config = dict[str, Any]
#: what a config with impossible values raises, or weights of other names or shapes
_NOT_ITS_CLASS = (KeyError, IndexError, ValueError, RuntimeError, AttributeError, TypeError)


def load_checked(
    adapter: Adapter,
    class_name: str,
    dtype: torch.dtype,
    *,
    config_of: Callable[[Adapter], Config],
    check: Callable[[str, Config], None],
) -> Any:
    """Return the model of an adapter on the host.

    Args:
        adapter: its folder or file.
        class_name: its diffusers class.
        dtype: the dtype of its weights in memory.
        config_of: returns its config.
        check: checks its completed config, given the alias.

    Raises:
        JobError: code ``adapter_invalid``: it cannot be read, or has not the tensors of its config; what ``check``
            raises.
    """
    import diffusers

    kind = getattr(diffusers, class_name)
    try:
        config = completed(kind, config_of(adapter))
        check(adapter.alias, config)
        with warnings.catch_warnings():
            # diffusers deprecates its own internals; users cannot act on it
            warnings.simplefilter("ignore")
            return load_net(adapter.path, kind, config, dtype)
    except (ModelError, OSError) as error:
        raise JobError("adapter_invalid", f"{adapter.kind} {adapter.alias!r}: {error}") from error
    except _NOT_ITS_CLASS as error:
        raise JobError(
            "adapter_invalid",
            f"{adapter.kind} {adapter.alias!r}: its tensors are not those of a {class_name}: {error}; "
            "replace its files",
        ) from error


def read_config(path: Path) -> Config:
    """Return the config of a net's folder.

    Raises:
        ModelError: it has none that can be read.
    """
    return read_json(path / "config.json")


def completed(kind: Any, config: Mapping[str, Any]) -> Config:
    """Return a config with the defaults of its diffusers class; lists are tuples."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    found = {**defaults, **config}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def load_net(path: Path, kind: Any, config: Config, dtype: torch.dtype) -> torch.nn.Module:
    """Return a net of a diffusers class on the host.

    Args:
        path: its folder or file.
        kind: the class.
        config: its config.
        dtype: the dtype of its weights in memory.

    Raises:
        ModelError: weights are missing, damaged, or of other shapes.
        KeyError, IndexError, ValueError, RuntimeError, AttributeError: a file's names are not those of the class.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in _files(path):
        tensors |= read_weights(read_tensor_file(file), "")
    if path.is_file() and kind.__name__ == "ControlNetModel":
        from diffusers.loaders import single_file_utils

        tensors = single_file_utils.convert_controlnet_checkpoint(tensors, config)
    net = build(kind, config, tensors, dtype, str(path))
    return net.eval().requires_grad_(requires_grad=False)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    names = {each.name for each in path.glob("*.safetensors")}
    # many folders have the weights in float16 only
    variant = "fp16" if names and all(".fp16." in name for name in names) else ""
    return weight_files(path, variant)
