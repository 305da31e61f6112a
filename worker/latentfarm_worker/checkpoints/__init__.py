"""Checkpoints: locate a model's files, check them, and load its modules from them."""

from __future__ import annotations

from pathlib import Path

from latentfarm_worker.checkpoints.base import Checkpoint
from latentfarm_worker.checkpoints.digest_cache import DigestCache
from latentfarm_worker.checkpoints.folder import FolderCheckpoint, fetch

__all__ = ["Checkpoint", "open_checkpoint"]


def open_checkpoint(source: str | Path, *, cache: Path | None = None) -> Checkpoint:
    """Return the model at ``source``, a diffusers folder or a hub id (``HF_HUB_OFFLINE`` is honoured).

    The folder ``cache`` keeps the digests of the weights for the next start.

    Raises:
        ModelError: the model does not exist, or contains custom code.
    """
    return FolderCheckpoint(fetch(source), name=str(source), digests=DigestCache(cache))
