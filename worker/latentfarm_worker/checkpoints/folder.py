"""A diffusers folder: its configs, tokenizers and weights, without pickles and custom code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints.digest_cache import DigestCache

#: the files that from_pretrained loads without a variant, whole or in shards
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
#: libraries whose classes model_index.json may name; stable_diffusion is diffusers' own safety checker
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_HUB_FILES = ("model_index.json", "*/*.json", "*/*.txt", "*/model*.safetensors",
              "*/diffusion_pytorch_model*.safetensors")  # fmt: skip
_HUB_IGNORED = (
    "*.fp16*",
    "*.bf16*",
    "*.non_ema*",
    "*.ema*",
    "safety_checker/*",
    "feature_extractor/*",
    "vae_1_0/*",
    "*.onnx*",
)


class FolderCheckpoint:
    """A model saved by ``save_pretrained``, or a hub's snapshot of one.

    Args:
        folder: the folder with ``model_index.json``.
        name: the source as the user wrote it.
        digests: the digests of weights that are known.

    Raises:
        ModelError: the folder contains custom code.
    """

    def __init__(self, folder: Path, *, name: str, digests: DigestCache) -> None:
        self.folder, self.name, self._digests = folder, name, digests
        reject_custom_code(folder, self.index)

    @cached_property
    def index(self) -> dict[str, Any]:
        """Return the content of ``model_index.json``."""
        return read_json(self.folder / "model_index.json")

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

    def load_model(self, part: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load a part's module, of a diffusers or transformers class, on the CPU."""
        local = {"subfolder": part, "use_safetensors": True, "local_files_only": True}
        if kind.__module__.startswith("transformers."):
            model = kind.from_pretrained(self.folder, dtype=dtype, **local)
        else:
            # the default needs the package accelerate, and warns on stderr without it
            model = kind.from_pretrained(self.folder, torch_dtype=dtype, low_cpu_mem_usage=False, **local)
        loaded: torch.nn.Module = model
        return loaded

    def load_tokenizer(self, part: str, kind: Any) -> Any:
        """Load a tokenizer of a transformers class."""
        return kind.from_pretrained(self.folder, subfolder=part, local_files_only=True)

    def digest(self, parts: Iterable[str]) -> str:
        """Return the sha256 over the names and contents of the weights of some parts.

        Raises:
            ModelError: a part has no safetensors.
        """
        digest = hashlib.sha256()
        for part in sorted(parts):
            files = sorted(path for path in (self.folder / part).glob("*") if _WEIGHTS.fullmatch(path.name))
            if not files:
                raise _no_safetensors(self.folder / part)
            for path in files:
                digest.update(f"{part}/{path.name} {self._digests.sha256(path)}\n".encode())
        return digest.hexdigest()


def fetch(source: str | Path) -> Path:
    """Return the folder of a model: ``source`` itself, or the hub's snapshot in the local cache.

    Raises:
        ModelError: neither a folder with a model_index.json nor a hub model has this name.

    """
    folder = Path(source)
    if (folder / "model_index.json").is_file():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise ModelError(
            f"{source}: no model_index.json there; name a folder saved by save_pretrained or a hub "
            "id such as CompVis/stable-diffusion-v1-4"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(_HUB_FILES), ignore_patterns=list(_HUB_IGNORED)))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source}: not in the local hub cache, and the hub does not serve it ({error}); check the id, "
            "the network and HF_HUB_OFFLINE, or name a local folder"
        ) from error


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
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
    there = f"only {', '.join(pickles)}" if pickles else "no weights"
    return ModelError(
        f"{folder}: {there} there; latentfarm loads safetensors only, since pickles run code: save the model "
        "with save_pretrained(..., safe_serialization=True)"
    )
