"""Build a model and an engine from settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from latentfarm.settings import Settings
from latentfarm_worker.calibration.slots import autotune_slots
from latentfarm_worker.engine.batch_sizes import CachedBatchSizes, any_batch_size, compiled_batch_sizes
from latentfarm_worker.engine.engine import Engine, Observer
from latentfarm_worker.mini import MODEL_DIR
from latentfarm_worker.models import Family, load_family

log = logging.getLogger(__name__)

_INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that a setting names; ``auto`` is float32 on a CPU and float16 on a GPU."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return _DTYPES[name]


def load_model(settings: Settings) -> Family:
    """Load the model that the settings name.

    Raises:
        ModelError: it cannot be used.
    """
    device = pick_device()
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > 2:
        # one is left for the encoder and whatever else is not the model
        torch.set_num_threads(torch.get_num_threads() - 1)
    source = settings.model_source or MODEL_DIR
    return load_family(source, dtype=pick_dtype(settings.dtype, device), device=device)


def make_engine(family: Family, settings: Settings, *, on_step: Observer | None = None) -> Engine:
    """Return an engine as the settings want it; how many slots, where they leave it open, is measured or remembered."""
    slots = settings.slots
    if not slots:
        found = autotune_slots(family, settings.cache_dir)
        slots = found.slots
        how = "as remembered" if found.remembered else "measured now"
        log.info("%d slots, %s; steps of an image a second by slots: %s", slots, how, _shown(found.rates))
    if wants_compiling(family, settings):
        keep_compiled_files(settings)
        family.compile(compiled_batch_sizes(2 * slots))
    exact = settings.deterministic
    row_counts = CachedBatchSizes(settings.cache_dir) if exact else any_batch_size
    return Engine(family, slots=slots, row_counts=row_counts, on_step=on_step)


def wants_compiling(family: Family, settings: Settings) -> bool:
    """Return whether the model is to be compiled."""
    return family.device.type == "cuda" if settings.compile is None else settings.compile


def keep_compiled_files(settings: Settings) -> None:
    """Have Inductor keep what it makes where the next start finds it, unless its own variable says where."""
    # torch, being imported, has put its own folder there by now: below the temporary one, which a container loses with
    # its end and may not run anything from
    if os.environ.get(_INDUCTOR_CACHE, default_cache_dir()) == default_cache_dir():
        os.environ[_INDUCTOR_CACHE] = str(settings.cache_dir / "inductor")


def _shown(rates: Mapping[int, float]) -> str:
    return ", ".join(f"{slots}: {rate:.2f}" for slots, rate in rates.items())
