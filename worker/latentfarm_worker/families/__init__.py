"""Model families: the code that knows one kind of model. ``load_family`` picks it by ``model_index.json``."""

from __future__ import annotations

from pathlib import Path

import torch

from latentfarm.errors import ModelError
from latentfarm_worker.families.base import Family
from latentfarm_worker.families.files import fetch, read_json
from latentfarm_worker.families.sd import StableDiffusion

__all__ = ["Family", "load_family"]

#: model_index.json's _class_name -> family
FAMILIES = {"StableDiffusionPipeline": StableDiffusion}


def load_family(source: str | Path, *, dtype: torch.dtype, device: torch.device) -> Family:
    """Load the model at ``source``, a diffusers folder or a hub id (``HF_HUB_OFFLINE`` is honoured).

    Raises:
        ModelError: there is no such model, it is no kind that we know, or its weights are not safetensors.

    """
    folder = fetch(source)
    kind = read_json(folder / "model_index.json").get("_class_name")
    if kind not in FAMILIES:
        raise ModelError(
            f"{source}: model_index.json names the pipeline {kind!r}; latentfarm renders "
            f"{', '.join(FAMILIES)}: use a model saved by one of these"
        )
    return FAMILIES[kind].load(folder, name=str(source), dtype=dtype, device=device)
