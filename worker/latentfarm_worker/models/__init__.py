"""Model families: the code that knows one kind of model. ``load_family`` picks it by ``model_index.json``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from latentfarm.errors import ModelError
from latentfarm_worker.mini import MODEL_DIR
from latentfarm_worker.models.base import Family
from latentfarm_worker.models.checkpoint import fetch, read_json, reject_custom_code
from latentfarm_worker.models.sd import StableDiffusion
from latentfarm_worker.models.sdxl import StableDiffusionXL

__all__ = ["Family", "load_family", "token_counter"]

#: model_index.json's _class_name -> family
FAMILIES = {family.pipeline: family for family in (StableDiffusion, StableDiffusionXL)}


def load_family(source: str | Path, *, dtype: torch.dtype, device: torch.device) -> Family:
    """Load the model at ``source``, a diffusers folder or a hub id (``HF_HUB_OFFLINE`` is honoured).

    Raises:
        ModelError: there is no such model, it is no kind that we know, it brings code, or its weights are no
            safetensors.

    """
    folder = fetch(source)
    index = read_json(folder / "model_index.json")
    reject_custom_code(folder, index)
    kind = index.get("_class_name")
    if kind not in FAMILIES:
        raise ModelError(
            f"{source}: model_index.json names the pipeline {kind!r}; latentfarm renders "
            f"{', '.join(FAMILIES)}: use a model saved by one of these"
        )
    return FAMILIES[kind].load(folder, name=str(source), dtype=dtype, device=device)


def token_counter(source: str | Path) -> Callable[[str], int]:
    """Return what counts a prompt's tokens, start and end among them, as the model at ``source`` (or mini) does.

    Raises:
        ModelError: there is no such model, or it has no CLIP tokenizer.

    """
    from transformers import CLIPTokenizer

    folder = fetch(source or MODEL_DIR)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: its tokenizer cannot be loaded: {error}") from error
    return lambda prompt: len(tokenizer([prompt], truncation=False, verbose=False).input_ids[0])
