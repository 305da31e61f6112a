"""A diffusers folder: its configs, tokenizers and weights, without pickles and custom code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints.digest_cache import DigestCache
from latentfarm_worker.checkpoints.licence import licence_of_folder
from latentfarm_worker.checkpoints.tensor_file import PICKLES, TensorInfo, read_tensor_file
from latentfarm_worker.checkpoints.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch

#: the files that from_pretrained loads, whole or in shards, and the variant in their names
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<a>[\w-]+?))?(?:-\d+-of-\d+)?(?:\.(?P<b>[\w-]+))?\.safetensors"
)
#: libraries whose classes model_index.json may name; stable_diffusion is diffusers' own safety checker
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")


class FolderCheckpoint:
    """A model saved by ``save_pretrained``, or a hub's snapshot of one.

    Args:
        folder: the folder with ``model_index.json``.
        name: the source as the user wrote it.
        digests: the digests of weights that are known.
        variant: the weights to load where a part has several, such as ``fp16``; a part without them loads its others.

    Raises:
        ModelError: the folder contains custom code, or no part has the variant.
    """

    def __init__(self, folder: Path, *, name: str, digests: DigestCache, variant: str = "") -> None:
        self.folder, self.name, self.variant, self._digests = folder, name, variant, digests
        reject_custom_code(folder, self.index)
        if variant and not any(_files(path, variant) for path in sorted(folder.glob("*/"))):
            found = sorted({each for path in folder.glob("*/") for each in _variants(path)})
            there = f"there are {', '.join(found)}" if found else "there are no variants"
            raise ModelError(f"{name}: no part has the variant {variant!r}; {there}: write another --variant, or none")

    @cached_property
    def index(self) -> dict[str, Any]:
        """Return the content of ``model_index.json``."""
        return read_json(self.folder / "model_index.json")

    @cached_property
    def licence(self) -> str | None:
        """The licence that the model card states."""
        return licence_of_folder(self.folder)

    def has(self, part: str) -> bool:
        """Return whether the model has the sub-folder ``part``: the index may leave out an optional one."""
        entry = self.index.get(part)
        return isinstance(entry, list) and None not in entry

    def where(self, part: str) -> Path:
        """Return the path of the config of a part, for messages."""
        return self.folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")

    def config(self, part: str) -> dict[str, Any]:
        """Return the config of a part.

        Raises:
            ModelError: the file is missing or not a JSON object.
        """
        return read_json(self.where(part))

    def files(self, part: str) -> list[Path]:
        """Return the files with the weights of a part: of the variant, else those without one.

        Raises:
            ModelError: there are none.
        """
        return weight_files(self.folder / part, self.variant)

    def tensors(self, part: str) -> list[TensorInfo]:
        """Return what the headers of a part's files say about its tensors.

        Raises:
            ModelError: the weights are missing or damaged.
        """
        return [tensor for path in self.files(part) for tensor in read_tensor_file(path).tensors.values()]

    def place(self, part: str) -> Path:
        """Return the folder of a part's weights."""
        return self.folder / part

    def load_model(self, part: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load a part's module, of a diffusers or transformers class, on the CPU.

        Raises:
            ModelError: the weights are missing or damaged.
        """
        for path in self.files(part):
            # its errors have a place and a cure; those of the library have not
            read_tensor_file(path)
        variant = self.variant if self.variant and _files(self.folder / part, self.variant) else None
        local = {"subfolder": part, "use_safetensors": True, "local_files_only": True, "variant": variant}
        if kind.__module__.startswith("transformers."):
            model = kind.from_pretrained(self.folder, dtype=dtype, **local)
        else:
            # the default needs the package accelerate, and warns on stderr without it
            model = kind.from_pretrained(self.folder, torch_dtype=dtype, low_cpu_mem_usage=False, **local)
            if not getattr(kind, "_keep_in_fp32_modules", None):
                import torch

                # without accelerate, the file's dtype stays where the first tensor's happens to be the model's
                model = torch.nn.Module.to(model, dtype)
        loaded: torch.nn.Module = model
        return loaded

    def load_tokenizer(self, part: str, kind: Any) -> Any:
        """Load a tokenizer of a transformers class."""
        return load_tokenizer(self.folder, part, kind)

    def digest(self, parts: Iterable[str]) -> str:
        """Return the sha256 over the names and contents of the weights of some parts.

        Raises:
            ModelError: a part has no safetensors.
        """
        digest = hashlib.sha256()
        for part in sorted(parts):
            for path in self.files(part):
                digest.update(f"{part}/{path.name} {self._digests.sha256(path)}\n".encode())
        return digest.hexdigest()


def weight_files(folder: Path, variant: str = "") -> list[Path]:
    """Return the files with the weights in a folder: of the variant, else those without one.

    Raises:
        ModelError: there are none.
    """
    found = _files(folder, variant) or _files(folder, "")
    if not found:
        raise _no_safetensors(folder)
    return found


def _files(folder: Path, variant: str) -> list[Path]:
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        name = _WEIGHTS.fullmatch(path.name)
        if name is not None and (name["a"] or name["b"] or "") == variant:
            found.append(path)
    return found


def _variants(folder: Path) -> set[str]:
    names = (_WEIGHTS.fullmatch(path.name) for path in folder.glob("*.safetensors"))
    return {name["a"] or name["b"] for name in names if name is not None and (name["a"] or name["b"])}


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a config file.

    Raises:
        ModelError: the file is missing or not a JSON object.

    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); save the model again with save_pretrained") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: is not a JSON object; save the model again with save_pretrained")
    return config


def reject_custom_code(folder: Path, index: dict[str, Any]) -> None:
    """Reject a model that contains code: a custom pipeline, a custom class, or an ``auto_map`` in a config.

    The code would not run, since only named classes are loaded. But without it the images would be wrong.

    Raises:
        ModelError: the model contains code.

    """
    cure = "latentfarm runs no code from a model; use one that opens without custom_pipeline and trust_remote_code"
    for name, entry in index.items():
        library = entry[0] if isinstance(entry, list) and entry else None
        if name == "_class_name" and isinstance(entry, list):
            raise ModelError(f"{folder}/model_index.json: _class_name is the custom pipeline {entry!r}; {cure}")
        if library is not None and library not in _LIBRARIES:
            raise ModelError(f"{folder}/model_index.json: {name} is the custom class {entry!r}; {cure}")
    for path in sorted(folder.glob("*/*.json")):
        if path.name.endswith("config.json") and b'"auto_map"' in path.read_bytes():
            raise ModelError(f"{path}: auto_map names custom code; {cure}")


def _no_safetensors(folder: Path) -> ModelError:
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    there = f"only {', '.join(pickles)}" if pickles else "no weights"
    return ModelError(
        f"{folder}: {there} there; latentfarm loads safetensors only, since pickles run code: save the model "
        "with save_pretrained(..., safe_serialization=True)"
    )
