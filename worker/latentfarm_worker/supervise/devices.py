"""Which devices workers run on, and what the environment of each worker is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from latentfarm.errors import InputError
from latentfarm.monitoring import listen_address

_COUNT_GPUS = "import torch; print(torch.cuda.device_count())"
_MAX_WORKERS = 64


@dataclass(frozen=True)
class Device:
    """``name`` is for the log; ``environment`` is what a worker's environment differs in."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)


#: the worker chooses: the first GPU, else the CPU
ANY_DEVICE = Device("")


def parse_devices(text: str, environment: Mapping[str, str] = os.environ, *, cores: int | None = None) -> list[Device]:
    """Read ``all``, ``cpu:N`` or CUDA devices such as ``0,1``, by number or UUID; return one device a worker.

    Each worker serves its metrics at the next port.

    Args:
        text: The devices.
        environment: ``all`` means its ``CUDA_VISIBLE_DEVICES``, or every GPU if that is not set.
        cores: CPU cores that the workers of ``cpu:N`` share [default: those of this machine].

    Raises:
        InputError: It is none of these, or there is no such device or port.
    """
    devices = _parse(text, environment.get("CUDA_VISIBLE_DEVICES"), cores or os.cpu_count() or 1)
    address = environment.get(listen_address.VARIABLE, "")
    return [
        Device(
            device.name,
            {**device.environment, listen_address.VARIABLE: listen_address.nth_address(address, place)},
        )
        for place, device in enumerate(devices)
    ]


def _parse(text: str, visible: str | None, cores: int) -> list[Device]:
    kind, _, count = text.partition(":")
    if kind == "cpu":
        if not (count.isascii() and count.isdigit() and 1 <= int(count) <= _MAX_WORKERS):
            raise _invalid(text)
        threads = str(max(1, cores // int(count)))
        variables = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}
        return [Device(f"cpu {number}", variables) for number in range(int(count))]
    names = _all_gpus(visible) if text == "all" else [name.strip() for name in text.split(",")]
    if not names:
        raise InputError("there is no CUDA device here; write --devices cpu:1 to render on the CPU")
    if len(set(names)) < len(names) or not all(_is_gpu(name) for name in names):
        raise _invalid(text)
    return [Device(f"cuda {name}", {"CUDA_VISIBLE_DEVICES": name}) for name in names]


def _invalid(text: str) -> InputError:
    return InputError(
        f"devices {text!r}: write all, cpu:N with N from 1 to {_MAX_WORKERS}, or GPUs such as 0,1, each once"
    )


def _is_gpu(name: str) -> bool:
    return (name.isascii() and name.isdigit()) or name.startswith(("GPU-", "MIG-"))


def _all_gpus(visible: str | None) -> list[str]:
    if visible is not None:
        return [name for each in visible.split(",") if (name := each.strip())]
    # torch knows which GPUs are usable; in a process of its own, because it is large
    counted = subprocess.run([sys.executable, "-c", _COUNT_GPUS], capture_output=True, text=True, check=False)
    if counted.returncode:
        raise InputError(f"the CUDA devices cannot be counted: {counted.stderr.strip().rpartition(os.linesep)[2]}")
    return [str(number) for number in range(int(counted.stdout))]
