"""What decides how a device rounds, and so the last bits of an image."""

from __future__ import annotations

from typing import Any

import torch


def device_conditions(device: torch.device) -> dict[str, Any]:
    """Return the fields of a receipt that describe the device: where they are equal, equal work gives equal bytes.

    A GPU's model chooses the kernels, cuDNN and torch have them. A CPU's libraries choose theirs by its instruction
    set and caches, and divide sums by the number of threads.
    """
    if device.type == "cuda":
        return {
            "device": "cuda",
            "device_name": torch.cuda.get_device_name(device),
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    capabilities = torch.cpu.get_capabilities()
    return {
        "device": device.type,
        "processor": capabilities.get("cpu_name") or capabilities["architecture"],
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
