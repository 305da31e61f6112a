"""A checkpoint of which some parts are loaded already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from latentfarm_worker.checkpoints.base import Checkpoint


class PartlyLoaded:
    """A checkpoint that gives the modules of some parts without reading their weights.

    Args:
        checkpoint: the files, for everything else.
        loaded: modules by part.
    """

    def __init__(self, checkpoint: Checkpoint, loaded: Mapping[str, torch.nn.Module]) -> None:
        self._checkpoint = checkpoint
        self._loaded = dict(loaded)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    def load_model(self, part: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Return a part's module: one that is loaded, else from the files."""
        return self._loaded.get(part) or self._checkpoint.load_model(part, kind, dtype)
