"""The rows of a micro-batch, the images of a decoder's group, and whether CUDA graphs are faster: measured and cached.

The first two decide an image's last bits. So the workers of a machine, and the next start, use the first measurement.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from latentfarm_worker import device_errors
from latentfarm_worker.calibration.cache import CalibrationCache, cache_key
from latentfarm_worker.calibration.dummy_inputs import dummy_inputs
from latentfarm_worker.cuda_graph import GraphedEvaluation
from latentfarm_worker.models.base import Family, native_shape
from latentfarm_worker.text_encoders.prompt import Tensors

log = logging.getLogger(__name__)

FILE = "micro_batch.json"
#: the rows and the images that are tried, in this order; more add latency and memory, and no throughput. A CPU gains
#: nothing by decoding several images at once
_ROWS = {"cpu": (2, 4, 8, 16), "cuda": (8, 16, 32, 64)}
_IMAGES = {"cpu": (1,), "cuda": (1, 2, 4, 8)}
#: micro-batches of guided images in a step. A GPU computes one while the host launches the next. On a CPU a second one
#: would only make each image take longer
_MICRO_BATCHES = {"cpu": 1, "cuda": 2}
#: the smallest size with this share of the best rate is taken. It is lower on a CPU, whose rate hardly rises with the
#: size, and whose micro-batches are seldom full
_GOOD_ENOUGH = {"cpu": 0.9, "cuda": 0.95}
#: if a rate is below this share of the best, larger sizes are not tried
_MIN_SHARE = 0.7
_ROUNDS = 5
#: share of a GPU's memory; the rest is for the allocator
_MAX_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Calibration:
    """The ``micro_batch`` in rows and the ``decode_group`` in images to use, at the model's native size.

    ``cuda_graphs``: whether the model is faster as a CUDA graph. ``row_rates``: by micro-batch, rows per second;
    ``decode_rates``: by group, images per second. ``cached``: they were measured before.
    """

    micro_batch: int
    decode_group: int
    row_rates: dict[int, float]
    decode_rates: dict[int, float]
    cuda_graphs: bool = False
    cached: bool = False


def default_slots(device: torch.device, micro_batch: int) -> int:
    """Return the guided images that run together if their number is not given."""
    return micro_batch // 2 * _MICRO_BATCHES[_kind(device)]


def smallest_micro_batch(device: torch.device) -> int:
    """Return the first number of rows that ``measure`` tries."""
    return _ROWS[_kind(device)][0]


def calibrate(family: Family, cache: Path) -> Calibration:
    """Return the result cached in the folder ``cache``, or measure; one process of a machine measures at a time.

    The model must be compiled before if it will run so.
    """
    compiled = ("compiled",) if family.compiled else ()
    quantized = () if family.quantization == "none" else (family.quantization,)
    key = cache_key(family, f"{family.native_width}x{family.native_height}", *compiled, *quantized)
    found, cached = CalibrationCache(cache, FILE, Calibration).find(key, lambda: measure(family))
    return replace(found, cached=cached)


@torch.inference_mode()
def measure(family: Family) -> Calibration:
    """Time the model and the decoder at rising sizes, until the rate falls or memory runs out."""
    device = _kind(family.device)

    def prepare_rows(rows: int) -> Callable[[], object]:
        inputs = dummy_inputs(family, native_shape(family), rows)
        return lambda: family.predict(*inputs)

    def prepare_images(images: int) -> Callable[[], object]:
        latents = dummy_inputs(family, native_shape(family), images).latents
        return lambda: family.decode(latents)

    row_rates = _rates(family.device, _ROWS[device], prepare_rows)
    # one size needs no measurement
    decode_rates = _rates(family.device, _IMAGES[device], prepare_images) if len(_IMAGES[device]) > 1 else {1: 0.0}
    if device == "cuda":
        torch.cuda.empty_cache()
    share = _GOOD_ENOUGH[device]
    rows = _smallest(row_rates, share)
    return Calibration(
        micro_batch=rows,
        decode_group=_smallest(decode_rates, share),
        row_rates=row_rates,
        decode_rates=decode_rates,
        cuda_graphs=device == "cuda" and _graph_is_faster(family, rows, row_rates[rows]),
    )


def _graph_is_faster(family: Family, rows: int, rate: float) -> bool:
    """Return whether the model as a CUDA graph has a higher rate than ``rate``, in rows per second."""
    latents, timesteps, conditioning = dummy_inputs(family, native_shape(family), rows)

    def evaluate(_: torch.Tensor, text: Tensors) -> None:
        family.predict(latents, timesteps, text)

    indices = torch.zeros((3, rows), dtype=torch.int64, device=family.device)
    graphed = GraphedEvaluation(evaluate, indices)
    try:
        found = _rates(family.device, [rows], lambda _: lambda: graphed(indices, conditioning))
    except Exception as error:
        if device_errors.is_fatal(error):
            raise
        log.warning("the model cannot be captured in a CUDA graph, and runs without: %s", error)
        return False
    return found[rows] > rate


def _kind(device: torch.device) -> str:
    return device.type if device.type in _ROWS else "cpu"


def _smallest(rates: dict[int, float], share: float) -> int:
    return min(size for size, rate in rates.items() if rate >= share * max(rates.values()))


def _rates(
    device: torch.device, sizes: Iterable[int], prepare: Callable[[int], Callable[[], object]]
) -> dict[int, float]:
    """Return rows or images per second by size. ``prepare`` returns a call with a size."""
    calls: dict[int, Callable[[], object]] = {}
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            calls[size] = prepare(size)
            # the first call of a size takes longer
            calls[size]()
            rates[size] = size / _seconds(device, calls[size])
        except Exception as error:
            if not device_errors.is_out_of_memory(error) or not rates:
                raise
            calls.pop(size, None)
            break
        if not _has_room(device) or rates[size] < _MIN_SHARE * max(rates.values()):
            break
    # several rounds over all, since a machine's speed changes over time
    for _ in range(_ROUNDS - 1):
        rates = {size: max(rate, size / _seconds(device, calls[size])) for size, rate in rates.items()}
    return rates


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Return the seconds of a call: wall clock on a GPU, CPU time of all threads on a CPU."""
    # other processes must not decide a result that is cached for good, so a CPU's wall clock is not used
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    _wait_for(device)
    began = clock()
    call()
    _wait_for(device)
    return clock() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _has_room(device: torch.device) -> bool:
    """Return whether twice the size may fit."""
    if device.type != "cuda":
        return True
    _, total = torch.cuda.mem_get_info(device)
    return 2 * torch.cuda.max_memory_allocated(device) < _MAX_MEMORY_SHARE * total
