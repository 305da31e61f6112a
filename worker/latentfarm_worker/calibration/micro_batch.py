"""The number of slots: measured once and cached for the device, the model and the native size.

The batch size decides an image's last bits. So the workers of a machine, and the next start, use the first measurement.
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
#: slots that are tried, in this order; more add latency and memory, and no throughput
_TRIED = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 2, 4, 8, 16, 32, 64)}
#: the smallest number of slots with this share of the best rate is taken. It is lower on a CPU, whose rate hardly
#: rises with the batch, and whose batch is seldom full
_GOOD_ENOUGH = {"cpu": 0.92, "cuda": 0.95}
#: if a rate is below this share of the best, larger numbers are not tried
_MIN_SHARE = 0.7
_ROUNDS = 5
#: share of a GPU's memory; the rest is for the decoder and the allocator
_MAX_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class SlotCalibration:
    """The number of ``slots`` to use, and ``rates``: by number of slots, image steps per second.

    An image step is one model evaluation of two rows. ``cached``: it was measured before.
    """

    slots: int
    rates: dict[int, float]
    cached: bool = False


def autotune_slots(family: Family, cache: Path) -> SlotCalibration:
    """Return the result cached in the folder ``cache``, or measure; one process of a machine measures at a time."""
    key = cache_key(family, f"{family.native_width}x{family.native_height}")
    found, cached = CalibrationCache(cache, FILE, SlotCalibration).find(key, lambda: measure(family))
    return replace(found, cached=cached)


@torch.inference_mode()
def measure(family: Family) -> SlotCalibration:
    """Time the model at rising numbers of slots of its native size, until the rate falls or memory runs out."""
    device = family.device.type if family.device.type in _TRIED else "cpu"
    inputs: dict[int, DummyInputs] = {}
    rates: dict[int, float] = {}
    for slots in _TRIED[device]:
        try:
            inputs[slots] = dummy_inputs(family, native_shape(family), 2 * slots)
            # the first call of a batch size takes longer
            family.predict(*inputs[slots])
            rates[slots] = slots / _seconds(family, inputs[slots])
        except Exception as error:
            if not device_errors.is_out_of_memory(error) or not rates:
                raise
            break
        if not _has_room(family.device) or rates[slots] < _MIN_SHARE * max(rates.values()):
            break
    # several rounds over all, since a machine's speed changes over time
    for _ in range(_ROUNDS - 1):
        rates = {slots: max(rate, slots / _seconds(family, inputs[slots])) for slots, rate in rates.items()}
    if device == "cuda":
        torch.cuda.empty_cache()
    enough = _GOOD_ENOUGH[device] * max(rates.values())
    return SlotCalibration(min(slots for slots, rate in rates.items() if rate >= enough), rates)


def _seconds(family: Family, inputs: DummyInputs) -> float:
    """Return the seconds of a call: wall clock on a GPU, CPU time of all threads on a CPU."""
    # other processes must not decide a result that is cached for good, so a CPU's wall clock is not used
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
    """Return whether twice as many rows may fit."""
    if device.type != "cuda":
        return True
    _, total = torch.cuda.mem_get_info(device)
    return 2 * torch.cuda.max_memory_allocated(device) < _MAX_MEMORY_SHARE * total
