"""The interface between a model family and the files that it is loaded from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Checkpoint(Protocol):
    """The files of one model. A part is a sub-folder of a diffusers folder: ``unet``, ``vae``, ``text_encoder``.

    Attributes:
        name: the source as the user wrote it.
        index: the content of ``model_index.json``: the pipeline's class, its settings, and the classes of its parts.
    """

    name: str

    @property
    def index(self) -> dict[str, Any]: ...

    @property
    def licence(self) -> str | None:
        """The licence that the model's files state; None if they state none."""

    def has(self, part: str) -> bool:
        """Return whether the model has a part, which may be optional."""

    def where(self, part: str) -> Path:
        """Return the path of the config of a part, for messages."""

    def config(self, part: str) -> dict[str, Any]:
        """Return the config of a part.

        Raises:
            ModelError: it cannot be read.
        """

    def load_model(self, part: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load a part's module, of the diffusers or transformers class ``kind``, on the CPU."""

    def load_tokenizer(self, part: str, kind: Any) -> Any:
        """Load a tokenizer of the transformers class ``kind``."""

    def digest(self, parts: Iterable[str]) -> str:
        """Return the sha256 over the weights of some parts.

        Raises:
            ModelError: the weights are not safetensors.
        """
