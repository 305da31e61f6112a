"""How many slots a device should have: measured once, and remembered for the device, the model and the shape.

What runs together decides a picture's last bits, so a number that was measured stays: workers of one machine, and
the next start, use what the first one found.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from latentfarm_worker import device_errors
from latentfarm_worker.calibration.cache import CalibrationCache, cache_key
from latentfarm_worker.calibration.dummy_inputs import DummyInputs, dummy_inputs
from latentfarm_worker.models.base import Family, native_shape

FILE = "slots.json"
#: slots that are tried, in this order; more cost latency and memory for nothing
_TRIED = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 2, 4, 8, 16, 32, 64)}
#: a number of slots is as good as the best from this share of its rate on: the smallest of these is taken. A CPU
#: gains little by more, and its engine, which seldom has all the rows that a large call is worth, still less
_GOOD_ENOUGH = {"cpu": 0.92, "cuda": 0.95}
#: below this share of the best so far, nothing larger is tried
_HOPELESS = 0.7
_ROUNDS = 5
#: of a GPU's memory: the rest is the decoder's, and the allocator's
_MOST_MEMORY = 0.8


@dataclass(frozen=True)
class SlotCalibration:
    """What was found: the number of ``slots`` to use, and of each number that was tried the steps of an image a second.

    An image's step is one call of the model for its two rows.
    """

    slots: int
    rates: dict[int, float]
    remembered: bool = False


def autotune_slots(family: Family, cache: Path) -> SlotCalibration:
    """Return what was remembered below ``cache``, or measure it; only one process of a machine does at a time."""
    key = cache_key(family, f"{family.native_width}x{family.native_height}")
    found, remembered = CalibrationCache(cache, FILE, SlotCalibration).find(key, lambda: measure(family))
    return replace(found, remembered=remembered)


@torch.inference_mode()
def measure(family: Family) -> SlotCalibration:
    """Time the model at growing numbers of slots of its native size, as long as that helps and memory lasts."""
    device = family.device.type if family.device.type in _TRIED else "cpu"
    inputs: dict[int, DummyInputs] = {}
    rates: dict[int, float] = {}
    for slots in _TRIED[device]:
        try:
            inputs[slots] = dummy_inputs(family, native_shape(family), 2 * slots)
            # the first call with so many rows takes longer
            family.predict(*inputs[slots])
            rates[slots] = slots / _seconds(family, inputs[slots])
        except Exception as error:
            if not device_errors.is_out_of_memory(error) or not rates:
                raise
            break
        if not _has_room(family.device) or rates[slots] < _HOPELESS * max(rates.values()):
            break
    # in turn, since a machine is quicker at one time than at another
    for _ in range(_ROUNDS - 1):
        rates = {slots: max(rate, slots / _seconds(family, inputs[slots])) for slots, rate in rates.items()}
    if device == "cuda":
        torch.cuda.empty_cache()
    enough = _GOOD_ENOUGH[device] * max(rates.values())
    return SlotCalibration(min(slots for slots, rate in rates.items() if rate >= enough), rates)


def _seconds(family: Family, inputs: DummyInputs) -> float:
    """Return the time of a call; on a CPU that of all its threads."""
    # what else the machine does must not decide for good: on a CPU only this process's own time counts
    clock = time.perf_counter if family.device.type == "cuda" else time.process_time
    _wait_for(family.device)
    began = clock()
    family.predict(*inputs)
    _wait_for(family.device)
    return clock() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _has_room(device: torch.device) -> bool:
    """Return whether twice as many rows may still fit."""
    if device.type != "cuda":
        return True
    _, total = torch.cuda.mem_get_info(device)
    return 2 * torch.cuda.max_memory_allocated(device) < _MOST_MEMORY * total
