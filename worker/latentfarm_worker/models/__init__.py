"""Model families, one module each. ``load_family`` selects the family by ``model_index.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints import Checkpoint, open_checkpoint
from latentfarm_worker.checkpoints.partly_loaded import PartlyLoaded
from latentfarm_worker.mini import locate
from latentfarm_worker.models.base import Family
from latentfarm_worker.models.chroma import Chroma
from latentfarm_worker.models.flux import Flux
from latentfarm_worker.models.flux2 import Flux2Klein
from latentfarm_worker.models.inpainting import StableDiffusionInpaint, StableDiffusionXLInpaint
from latentfarm_worker.models.memory import Memory
from latentfarm_worker.models.pipeline_model import PipelineModel
from latentfarm_worker.models.pixart import PixArtSigma
from latentfarm_worker.models.sd import StableDiffusion
from latentfarm_worker.models.sd3 import StableDiffusion3
from latentfarm_worker.models.sdxl import StableDiffusionXL
from latentfarm_worker.models.z_image import ZImage

__all__ = ["Family", "Memory", "load_family", "token_counter"]

#: _class_name in model_index.json -> family
FAMILIES: dict[str, type[PipelineModel]] = {
    family.pipeline: family
    for family in (
        *(StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, Chroma, Flux2Klein, ZImage, PixArtSigma),
        *(StableDiffusionInpaint, StableDiffusionXLInpaint),
    )
}


def load_family(
    source: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    memory: Memory | None = None,
    cache: Path | None = None,
    loaded: Mapping[str, torch.nn.Module] | None = None,
) -> Family:
    """Load the model at ``source``, a folder, a file or a hub id (``HF_HUB_OFFLINE`` is honoured).

    The folder ``cache`` keeps the digests of the weights for the next start. Parts that are ``loaded`` are not read.

    Raises:
        ModelError: the model does not exist, its pipeline is not supported, it contains custom code, its weights are
            not safetensors, or its weights cannot be placed or quantized as requested.

    """
    checkpoint = open_checkpoint(source, cache=cache)
    if loaded:
        checkpoint = cast("Checkpoint", PartlyLoaded(checkpoint, loaded))
    return _family_of(checkpoint).load(checkpoint, dtype=dtype, device=device, memory=memory)


def _family_of(checkpoint: Checkpoint) -> type[PipelineModel]:
    kind = checkpoint.index.get("_class_name")
    if kind not in FAMILIES:
        raise ModelError(
            f"{checkpoint.name}: model_index.json names the pipeline {kind!r}; latentfarm renders "
            f"{', '.join(FAMILIES)}: use a model saved by one of these"
        )
    return FAMILIES[kind]


def token_counter(source: str | Path) -> Callable[[str], int]:
    """Return a function that counts a prompt's tokens, start and end included.

    Args:
        source: the model, a folder, a file, a hub id or the name of a bundled one [default: mini].

    Raises:
        ModelError: the model does not exist, its pipeline is not supported, or its tokenizer cannot be loaded.

    """
    checkpoint = open_checkpoint(locate(source))
    try:
        return _family_of(checkpoint).token_counter(checkpoint)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: its tokenizer cannot be loaded: {error}") from error
