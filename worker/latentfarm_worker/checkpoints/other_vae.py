"""A model with another VAE than its own, as ``--vae`` names it: a diffusers folder, a sub-folder of one, or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints.base import Checkpoint
from latentfarm_worker.checkpoints.digest_cache import DigestCache
from latentfarm_worker.checkpoints.folder import read_json, weight_files
from latentfarm_worker.checkpoints.headers import read_header
from latentfarm_worker.checkpoints.layout import is_vae
from latentfarm_worker.checkpoints.sizes import complete, vae
from latentfarm_worker.checkpoints.tensor_file import TensorInfo

if TYPE_CHECKING:
    import torch

_PREFIX = "first_stage_model."


class OtherVae:
    """A checkpoint whose part ``vae`` comes from elsewhere.

    Args:
        model: the checkpoint of all other parts.
        source: a folder with the VAE's config.json, or with a sub-folder ``vae`` that has one, or a file.
        digests: the digests of weights that are known.

    Raises:
        ModelError: there is no VAE, or its latents have another number of channels.
    """

    def __init__(self, model: Checkpoint, source: Path, *, digests: DigestCache) -> None:
        self.model, self.name, self._digests = model, model.name, digests
        if source.is_dir():
            folders = [each for each in (source, source / "vae") if (each / "config.json").is_file()]
            if not folders:
                raise ModelError(f"{source}: no config.json of a VAE there; name a folder that has one, or a file")
            self._path = folders[0]
            self._config = read_json(self._path / "config.json")
        else:
            self._path = source
            self._config = self._config_of_file()
        own, other = (each.get("latent_channels") for each in (model.config("vae"), self._config))
        if own != other:
            raise ModelError(
                f"{source}: is a VAE for latents of {other} channels, but the model makes {own}; name a VAE of the "
                "model's family with --vae"
            )

    @property
    def index(self) -> dict[str, Any]:
        """Return the model's index."""
        return self.model.index

    @property
    def licence(self) -> str | None:
        """The model's licence."""
        return self.model.licence

    def has(self, part: str) -> bool:
        """Return whether the model has a part."""
        return part == "vae" or self.model.has(part)

    def where(self, part: str) -> Path:
        """Return the path of the config of a part, for messages."""
        return self._path if part == "vae" else self.model.where(part)

    def config(self, part: str) -> dict[str, Any]:
        """Return the config of a part."""
        return dict(self._config) if part == "vae" else self.model.config(part)

    def tensors(self, part: str) -> list[TensorInfo]:
        """Return what the headers of the VAE's files say about its tensors.

        Raises:
            ModelError: the weights are missing or damaged.
        """
        del part
        return [tensor for path in self._files() for tensor in read_header(path).tensors.values()]

    def place(self, part: str) -> Path:
        """Return the VAE's folder or file."""
        del part
        return self._path

    def load_model(self, part: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load a part's module, of a diffusers or transformers class, on the CPU.

        Raises:
            ModelError: the weights are missing or damaged.
        """
        if part != "vae":
            return self.model.load_model(part, kind, dtype)
        from latentfarm_worker.checkpoints.assembly import build
        from latentfarm_worker.checkpoints.conversion import convert
        from latentfarm_worker.checkpoints.weights import read_weights

        tensors: dict[str, torch.Tensor] = {}
        for path in self._files():
            file = read_header(path)
            prefix = _PREFIX if any(name.startswith(_PREFIX) for name in file.tensors) else ""
            tensors |= read_weights(file, prefix)
        return build(kind, self._config, convert("", "vae", tensors, self._config), dtype, f"{self._path}: vae")

    def load_tokenizer(self, part: str, kind: Any) -> Any:
        """Load a tokenizer of a transformers class."""
        return self.model.load_tokenizer(part, kind)

    def digest(self, parts: Iterable[str]) -> str:
        """Return the sha256 over the weights of some parts."""
        parts = sorted(parts)
        own = self.model.digest(part for part in parts if part != "vae")
        if "vae" not in parts:
            return own
        files = "".join(f"{path.name} {self._digests.sha256(path)}\n" for path in self._files())
        return hashlib.sha256(f"{own}\nvae {files}".encode()).hexdigest()

    def _files(self) -> list[Path]:
        return weight_files(self._path) if self._path.is_dir() else [self._path]

    def _config_of_file(self) -> dict[str, Any]:
        """Return the config of the model's own VAE with the sizes of the file's tensors."""
        file = read_header(self._path)
        if not is_vae(file):
            raise ModelError(f"{self._path}: is no VAE alone; name a VAE's file or folder with --vae")
        shapes = {name.removeprefix(_PREFIX): tensor.shape for name, tensor in file.tensors.items()}
        config = self.model.config("vae")
        if any(name.startswith("decoder.up_blocks.") for name in shapes):
            return {**config, "latent_channels": shapes["decoder.conv_in.weight"][1]}
        return complete(config, vae(shapes))
