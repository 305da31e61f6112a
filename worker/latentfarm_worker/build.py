"""Build a model and an engine from settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from typing import get_args

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from latentfarm.errors import InputError
from latentfarm.settings import Dtype, Settings
from latentfarm_worker import device_errors
from latentfarm_worker.calibration.dummy_inputs import call_with_each_size
from latentfarm_worker.calibration.slots import autotune_slots
from latentfarm_worker.engine.batch_sizes import CachedBatchSizes, any_batch_size, compiled_batch_sizes
from latentfarm_worker.engine.engine import Engine, Observer
from latentfarm_worker.engine.outcomes import first_line
from latentfarm_worker.mini import MODEL_DIR
from latentfarm_worker.models import Family, load_family
from latentfarm_worker.models.base import native_shape

log = logging.getLogger(__name__)

_INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(Dtype) if name != "auto"}


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a setting or a receipt; ``auto`` is float32 on a CPU and float16 on a GPU.

    Raises:
        InputError: The name is invalid.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise InputError(f"dtype {name!r} is unknown; write one of {', '.join(get_args(Dtype))}")
    return _DTYPES[name]


def load_model(settings: Settings) -> Family:
    """Load the model of the settings.

    Raises:
        ModelError: The model cannot be used.
    """
    device = pick_device()
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > 2:
        # leave one core for encoding, uploads and Redis
        torch.set_num_threads(torch.get_num_threads() - 1)
    source = settings.model_source or MODEL_DIR
    dtype = pick_dtype(settings.dtype, device)
    return load_family(source, dtype=dtype, device=device, cache=settings.cache_dir)


def make_engine(family: Family, settings: Settings, *, on_step: Observer | None = None) -> Engine:
    """Return an engine for the settings. If they name no number of slots, it is measured or read from the cache."""
    slots = settings.slots
    if not slots:
        found = autotune_slots(family, settings.cache_dir)
        slots = found.slots
        source = "from the cache" if found.cached else "measured now"
        rates = ", ".join(f"{count}: {rate:.2f}" for count, rate in found.rates.items())
        log.info("%d slots, %s; image steps per second by slots: %s", slots, source, rates)
    if wants_compiling(family, settings):
        keep_compiled_files(settings)
        compile_or_run_eagerly(family, compiled_batch_sizes(2 * slots))
    batch_sizes = CachedBatchSizes(settings.cache_dir) if settings.deterministic else any_batch_size
    return Engine(family, slots=slots, batch_sizes=batch_sizes, on_step=on_step)


def compile_or_run_eagerly(family: Family, sizes: Collection[int]) -> None:
    """Compile the model for these batch sizes now. If that is not possible, let it run uncompiled, with a warning.

    A machine may lack a C compiler or Triton. Its worker is slower then, which is better than none. This must be known
    before the exact batch sizes are measured, because they are those of the program that runs.
    """
    family.compile(sizes)
    try:
        call_with_each_size(family, native_shape(family), sizes)
    except Exception as error:
        if device_errors.is_fatal(error):
            raise
        if device_errors.is_out_of_memory(error):
            # the engine reduces its slots when it is warmed up
            return
        family.compile(())
        log.warning(
            "the model cannot be compiled and runs uncompiled, which is slower: %s; install a C compiler and Triton, "
            "or set LATENTFARM_COMPILE=false",
            first_line(error),
        )


def wants_compiling(family: Family, settings: Settings) -> bool:
    """Return whether to compile the model [default: only on a GPU]."""
    return family.device.type == "cuda" if settings.compile is None else settings.compile


def keep_compiled_files(settings: Settings) -> None:
    """Set Inductor's cache to our cache folder, so that the next start finds it, unless its own variable is set."""
    # importing torch has set the variable to a folder below the temporary one, which a container loses when it ends and
    # may be mounted noexec
    if os.environ.get(_INDUCTOR_CACHE, default_cache_dir()) == default_cache_dir():
        os.environ[_INDUCTOR_CACHE] = str(settings.cache_dir / "inductor")
