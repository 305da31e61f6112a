"""What a CPU gains from bfloat16: measured with the model itself, as it depends on the CPU and on the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from latentfarm.settings import Settings
from latentfarm_worker.build import load_model
from latentfarm_worker.calibration.dummy_inputs import dummy_inputs
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.base import Family, native_shape

#: torch's name of a capability, and the usual one: the faster first
_INSTRUCTIONS = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "sve_bf16": "SVE-BF16", "bf16": "Neon BF16"}
_DTYPES = ("float32", "bfloat16")
#: calls in each dtype after the first, which costs more; none if it takes so many seconds that this does not count
_CALLS, _LONG_S = 3, 3.0
#: pixels: a call of a larger model in its native size would take minutes
_MAX_SIDE = 256


@dataclass(frozen=True)
class Bfloat16Gain:
    """The seconds of one row of the model with one thread, and the CPU's instructions for bfloat16."""

    instructions: str
    float32_row_s: float
    bfloat16_row_s: float

    def __str__(self) -> str:
        share = self.bfloat16_row_s / self.float32_row_s
        figures = f"{1000 * self.bfloat16_row_s:.3g} against {1000 * self.float32_row_s:.3g} ms a row with one thread"
        return f"bfloat16 ({self.instructions}) takes {share:.2f} of the time of float32: {figures}"


def bfloat16_instructions() -> str:
    """Return the CPU's instructions for bfloat16; empty if it has none, as it then computes in float32 and converts."""
    capabilities = torch.cpu.get_capabilities()
    return next((name for flag, name in _INSTRUCTIONS.items() if capabilities.get(flag)), "")


@torch.inference_mode()
def measure_gain(family: Family, settings: Settings, rows: int) -> Bfloat16Gain | None:
    """Time the loaded model and the same one in the other dtype with micro-batches of so many rows.

    Return None on a CPU without instructions for bfloat16, and on a GPU.
    """
    instructions = bfloat16_instructions()
    if family.device.type != "cpu" or not instructions:
        return None
    threads = torch.get_num_threads()
    calls = {}
    for dtype in _DTYPES:
        same = family.dtype == getattr(torch, dtype)
        own = family if same else load_model(settings.model_copy(update={"dtype": dtype}))
        calls[dtype] = partial(own.predict, *dummy_inputs(own, _shape_of(own), rows))
    # on a busy machine several threads would mostly wait for each other, which takes CPU time too
    torch.set_num_threads(1)
    taken = {dtype: _cpu_seconds(call) for dtype, call in calls.items()}
    if max(taken.values()) < _LONG_S:
        # in turns, since a machine's speed changes over time
        for _ in range(_CALLS):
            taken = {dtype: min(taken[dtype], _cpu_seconds(call)) for dtype, call in calls.items()}
    torch.set_num_threads(threads)
    return Bfloat16Gain(instructions, taken["float32"] / rows, taken["bfloat16"] / rows)


def _shape_of(family: Family) -> LatentShape:
    most, native = _MAX_SIDE // family.vae_scale_factor, native_shape(family)
    return LatentShape(min(most, native.height), min(most, native.width))


def _cpu_seconds(call: Callable[[], object]) -> float:
    # not by the wall's clock: other processes must not decide the result
    began = time.process_time()
    call()
    return time.process_time() - began
