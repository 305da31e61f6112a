"""Build a model and an engine from settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch

from latentfarm.errors import InputError
from latentfarm.settings import Dtype, Quantization, Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.object_files import ObjectFiles
from latentfarm_worker.adapters.catalogue import Catalogue, open_catalogue
from latentfarm_worker.calibration.micro_batch import calibrate, default_slots
from latentfarm_worker.compilation import compile_or_run_eagerly, wants_compiling
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.mini import ADAPTERS_DIR, MODEL_DIR, locate
from latentfarm_worker.models import Family, Memory, load_family
from latentfarm_worker.text_encoders.conditions import embedding_conditions
from latentfarm_worker.text_encoders.embedding_files import EmbeddingFiles

log = logging.getLogger(__name__)

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(Dtype) if name != "auto"}


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device, quantization: Quantization = "none") -> torch.dtype:
    """Return the dtype of a setting or a receipt.

    ``auto`` is float32 on a CPU and float16 on a GPU; with a quantization, bfloat16.

    Raises:
        InputError: The name is invalid.
    """
    if name == "auto" and quantization != "none":
        return torch.bfloat16
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise InputError(f"dtype {name!r} is unknown; write one of {', '.join(get_args(Dtype))}")
    return _DTYPES[name]


def load_model(settings: Settings, loaded: Mapping[str, torch.nn.Module] | None = None) -> Family:
    """Load the model of the settings; modules that are ``loaded``, by part, are taken as they are.

    Raises:
        ModelError: The model cannot be used, or an adapter that is named.
        InputError: the setting of adapters is invalid.
        UnavailableError: a bucket with adapters does not answer.
    """
    device = pick_device()
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > 2:
        # leave one core for encoding, uploads and Redis
        torch.set_num_threads(torch.get_num_threads() - 1)
    source = locate(settings.model_source, alias=settings.model)
    dtype = pick_dtype(settings.dtype, device, settings.quantization)
    memory = Memory(settings.quantization, settings.text_encoder, settings.text_encoder_quantization)
    family = load_family(source, dtype=dtype, device=device, memory=memory, cache=settings.cache_dir, loaded=loaded)
    family.adapter_modules.max_bytes = settings.adapter_memory_bytes
    family.use_catalogue(_open_adapters(settings, bundled=ADAPTERS_DIR if source == MODEL_DIR else None))
    return family


def _open_adapters(settings: Settings, *, bundled: Path | None) -> Catalogue:
    """Return the adapters of the settings, and those of the bundled model."""

    def open_store(bucket: str) -> ObjectFiles:
        return ObjectFiles(Bucket.connect(settings.model_copy(update={"bucket": bucket})))

    return open_catalogue(
        settings.adapters,
        cache=settings.cache_dir,
        max_bytes=settings.adapter_cache_bytes,
        open_store=open_store,
        bundled=bundled,
    )


def open_embeddings(family: Family, settings: Settings) -> EmbeddingFiles | None:
    """Return the model's encoded prompts on disk, or None if the settings leave no bytes for them."""
    if not settings.embedding_cache_bytes:
        return None
    return EmbeddingFiles(
        settings.cache_dir / "embeddings",
        conditions=embedding_conditions(family.text_conditions, family.encoder_placement.device),
        max_bytes=settings.embedding_cache_bytes,
    )


def make_engine(family: Family, settings: Settings) -> Engine:
    """Return an engine for the settings. What they do not name is measured, or read from the cache."""
    if wants_compiling(family, settings):
        # first, because the sizes must be the best ones of the program that runs
        compile_or_run_eagerly(family, settings)
    found = calibrate(family, settings.cache_dir)
    micro_batch = settings.micro_batch or found.micro_batch
    slots = settings.slots or default_slots(family.device, micro_batch)
    log.info(
        "micro-batches of %d rows, %d slots, %d images in a decoder's group%s; %s: rows/s by micro-batch: %s",
        micro_batch,
        slots,
        found.decode_group,
        ", CUDA graphs" if found.cuda_graphs else "",
        "from the cache" if found.cached else "measured now",
        ", ".join(f"{rows}: {rate:.1f}" for rows, rate in found.row_rates.items()),
    )
    return Engine(
        family,
        slots=slots,
        micro_batch=micro_batch,
        decode_group=found.decode_group,
        deterministic=settings.deterministic,
        cuda_graphs=found.cuda_graphs,
        embeddings=open_embeddings(family, settings),
    )
