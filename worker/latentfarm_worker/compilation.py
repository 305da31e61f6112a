"""Compile a model with Inductor, or let it run uncompiled where that is not possible."""

from __future__ import annotations

import logging
import os

from torch._inductor import config as inductor_config
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from latentfarm.settings import Settings
from latentfarm_worker import device_errors
from latentfarm_worker.calibration.dummy_inputs import dummy_inputs
from latentfarm_worker.calibration.micro_batch import smallest_micro_batch
from latentfarm_worker.engine.outcomes import first_line
from latentfarm_worker.models.base import Family, native_shape

log = logging.getLogger(__name__)

_INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def wants_compiling(family: Family, settings: Settings) -> bool:
    """Return whether to compile the model [default: only on a GPU]."""
    return family.device.type == "cuda" if settings.compile is None else settings.compile


def compile_or_run_eagerly(family: Family, settings: Settings) -> None:
    """Compile the model now. If that is not possible, let it run uncompiled, with a warning.

    A machine may lack a C compiler or Triton. Its worker is slower then, which is better than none.
    """
    keep_compiled_files(settings)
    _choose_kernels(deterministic=settings.deterministic)
    family.compile()
    try:
        # a size that the calibration tries too, so that it is compiled once
        rows = settings.micro_batch or smallest_micro_batch(family.device)
        inputs = dummy_inputs(family, native_shape(family), rows)
        family.predict(*inputs)
        family.decode(inputs.latents[:1])
    except Exception as error:
        if device_errors.is_fatal(error):
            raise
        if device_errors.is_out_of_memory(error):
            # the engine reduces its slots when it is warmed up
            return
        family.uncompile()
        log.warning(
            "the model cannot be compiled and runs uncompiled, which is slower: %s; install a C compiler and Triton, "
            "or set LATENTFARM_COMPILE=false",
            first_line(error),
        )


def keep_compiled_files(settings: Settings) -> None:
    """Set Inductor's cache to our cache folder, so that the next start finds it, unless its own variable is set."""
    # importing torch has set the variable to a folder below the temporary one, which a container loses when it ends and
    # may be mounted noexec
    if os.environ.get(_INDUCTOR_CACHE, default_cache_dir()) == default_cache_dir():
        os.environ[_INDUCTOR_CACHE] = str(settings.cache_dir / "inductor")


def _choose_kernels(*, deterministic: bool) -> None:
    """Let Inductor choose kernels by rules, not by timing them, and with one order of sums for any number of rows.

    Otherwise two workers with the same GPU may run different kernels, and give other last bits.
    """
    inductor_config.deterministic = inductor_config.batch_invariant = deterministic
