"""How many slots a device should have: measured once, and remembered for the device, the model and the shape.

What runs together decides a picture's last bits, so a number that was measured stays: workers of one machine, and
the next start, use what the first one found.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter

from latentfarm.job import DEFAULT_GUIDANCE
from latentfarm_worker import faults
from latentfarm_worker.families.base import Family
from latentfarm_worker.text import Prompt, Tensors

log = logging.getLogger(__name__)

FILE = "slots.json"
#: slots that are tried, in this order; more cost latency and memory for nothing
_TRIED = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 2, 4, 8, 16, 32, 64)}
#: a number of slots is as good as the best from this share of its rate on: the smallest of these is taken
_GOOD_ENOUGH = 0.95
#: below this share of the best so far, nothing larger is tried
_HOPELESS = 0.7
_ROUNDS = 3
#: of a GPU's memory: the rest is the decoder's, and the allocator's
_MOST_MEMORY = 0.8


@dataclass(frozen=True)
class Measured:
    """What was found: the number of ``slots`` to use, and of each number that was tried the steps of an image a second.

    An image's step is one call of the model for its two rows.
    """

    slots: int
    rates: dict[int, float]
    remembered: bool = False


_RECORD = TypeAdapter(dict[str, Measured])


def best_slots(family: Family, cache: Path) -> Measured:
    """Return what was remembered below ``cache``, or measure it; only one process of a machine does at a time."""
    key = _key(family)
    with _locked(cache) as file:
        known = _read(file)
        if key in known:
            return replace(known[key], remembered=True)
        found = measure(family)
        _write(file, {**known, key: found})
    return found


@torch.inference_mode()
def measure(family: Family) -> Measured:
    """Time the model at growing numbers of slots of its native size, as long as that helps and memory lasts."""
    rates: dict[int, float] = {}
    for slots in _TRIED.get(family.device.type, _TRIED["cpu"]):
        try:
            rates[slots] = _rate(family, slots)
        except Exception as error:
            if not faults.is_out_of_memory(error) or not rates:
                raise
            break
        if not _has_room(family.device) or rates[slots] < _HOPELESS * max(rates.values()):
            break
    if family.device.type == "cuda":
        torch.cuda.empty_cache()
    best = max(rates.values())
    return Measured(min(slots for slots, rate in rates.items() if rate >= _GOOD_ENOUGH * best), rates)


def _rate(family: Family, slots: int) -> float:
    """Return slots over the shortest time of a call with two rows for each; on a CPU that of all its threads."""
    rows, factor = 2 * slots, family.vae_scale_factor
    height, width = family.native_height // factor, family.native_width // factor
    latents = torch.randn(
        (rows, family.latent_channels, height, width), generator=torch.Generator("cpu").manual_seed(0)
    ).to(family.device)
    timesteps = torch.full((rows,), 500.0, device=family.device)
    told = _told(family, rows)
    family.predict(latents, timesteps, told)
    # what else the machine does must not decide for good: on a CPU only this process's own time counts
    clock = time.perf_counter if family.device.type == "cuda" else time.process_time
    seconds = []
    for _ in range(_ROUNDS):
        _wait_for(family.device)
        began = clock()
        family.predict(latents, timesteps, told)
        _wait_for(family.device)
        seconds.append(clock() - began)
    return slots / min(seconds)


def _told(family: Family, rows: int) -> Tensors:
    [text] = family.encode([Prompt(family.tokenize(""))])
    sizes = family.size_tensors(family.native_width, family.native_height)
    told = {**text, **sizes, **family.guidance_tensors(DEFAULT_GUIDANCE)}
    return {name: tensor.expand(rows, *tensor.shape).contiguous() for name, tensor in told.items()}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _has_room(device: torch.device) -> bool:
    """Return whether twice as many rows may still fit."""
    if device.type != "cuda":
        return True
    _, total = torch.cuda.mem_get_info(device)
    return 2 * torch.cuda.max_memory_allocated(device) < _MOST_MEMORY * total


def device_name(device: torch.device) -> str:
    """Return what tells a device from others, as far as a model's speed goes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


# -- what is remembered --------------------------------------------------------------------------------------


def _key(family: Family) -> str:
    dtype = str(family.dtype).removeprefix("torch.")
    size = f"{family.native_width}x{family.native_height}"
    return f"{device_name(family.device)}, {family.model_digest}, {size}, {dtype}, torch {torch.__version__}"


@contextmanager
def _locked(cache: Path) -> Iterator[Path | None]:
    """Give the file to the one process that may use it; None where nothing can be written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / f"{FILE}.lock").open("w")
    except OSError as error:
        log.warning("what is measured is not remembered: %s; set LATENTFARM_CACHE_DIR to a folder of yours", error)
        yield None
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache / FILE


def _read(file: Path | None) -> dict[str, Measured]:
    try:
        return _RECORD.validate_json(file.read_bytes()) if file is not None else {}
    except (OSError, ValueError):
        # there is none yet, or it is none of ours: it is written anew
        return {}


def _write(file: Path | None, known: dict[str, Measured]) -> None:
    if file is not None:
        fresh = file.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(_RECORD.dump_json(known, indent=1))
        fresh.replace(file)
