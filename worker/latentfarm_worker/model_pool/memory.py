"""How many bytes the weights of a worker's models may take."""

from __future__ import annotations

import os
from pathlib import Path

import torch

#: share of the free memory for weights; the rest is for images, and on a GPU for the kernels' own memory
_SHARE = 0.6
_GIGABYTE = 1_000_000_000
_CGROUP = Path("/sys/fs/cgroup")


def weights_budget(device: torch.device, gigabytes: float) -> int:
    """Return the bytes for the weights that are on the device at once.

    Args:
        device: the device.
        gigabytes: the setting; 0: six tenths of the memory that is free now.
    """
    return int(gigabytes * _GIGABYTE) if gigabytes else int(_SHARE * free_bytes(device))


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still take: of a GPU, else of the host and its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return min(_free_host(), _free_container())


def _free_host() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # macOS: half of its memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _free_container() -> int:
    """Return what the container's limit leaves, as cgroups of version 2 have it; without one a large number."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    # files that were read are kept while nothing else needs the memory
    kept = int(statistics.get("inactive_file", 0))
    return 1 << 62 if limit == "max" else max(0, int(limit) - used + kept)
