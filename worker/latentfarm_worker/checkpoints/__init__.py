"""Checkpoints: locate a model's files, check them, and load its modules from them."""

from __future__ import annotations

from latentfarm_worker.checkpoints.base import Checkpoint
from latentfarm_worker.checkpoints.opening import open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
