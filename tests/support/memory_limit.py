"""Limit the memory of processes with a cgroup, so that the kernel's out-of-memory killer ends them for real."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def limited_memory(limit_bytes: int) -> Iterator[list[str]]:
    """Provide the beginning of a command that runs in a cgroup of its own; skip the test where none can be made."""
    # version 1 has a hierarchy for memory; version 2 has one for all
    first = _ROOT / "memory" if (_ROOT / "memory").is_dir() else _ROOT
    group = first / f"latentfarm-test-{os.getpid()}"
    file = group / ("memory.limit_in_bytes" if first != _ROOT else "memory.max")
    try:
        group.mkdir()
        file.write_text(str(limit_bytes))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no cgroup can be made here: {error}; a process that sends itself SIGKILL stands in for this")
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    finally:
        deadline = time.monotonic() + 20
        while group.is_dir() and time.monotonic() < deadline:
            try:
                group.rmdir()
            except OSError:
                # a process of it still ends
                time.sleep(0.1)
