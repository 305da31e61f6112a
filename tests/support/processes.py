"""Inspect other processes."""

from __future__ import annotations

import re
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal() and _parent(path) == pid]


def _parent(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(") ")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def process_of(worker: str) -> int:
    """Return the worker process that a worker's name belongs to; the name holds the pid of its supervisor."""
    found = re.fullmatch(r".*-(\d+)-[0-9a-f]{6}", worker)
    assert found is not None, worker
    [pid] = children_of(int(found[1]))
    return pid
