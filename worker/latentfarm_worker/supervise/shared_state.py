"""A worker's progress, in memory that it shares with its supervisor. Only the standard library is imported."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from enum import IntEnum
from threading import Lock

#: how a supervisor passes the shared memory and the worker's name to its child: "<file descriptor>:<worker>"
SUPERVISED = "LATENTFARM_SUPERVISED"


class Phase(IntEnum):
    """What the engine's thread is doing."""

    LOADING = 0
    IDLE = 1
    STEPPING = 2


class _Numbers(ctypes.Structure):
    # aligned words: a process reads and writes each as a whole, without a lock
    _fields_ = (("phase", ctypes.c_uint64), ("steps", ctypes.c_uint64), ("commits", ctypes.c_uint64))


class SharedState:
    """Phase, steps begun and images committed, in an unnamed file that a child inherits open.

    It outlives the child, so the next child counts on from the same numbers.
    """

    def __init__(self, descriptor: int = -1) -> None:
        """Map an open file of one page, or private memory if there is no descriptor."""
        self.descriptor = descriptor
        self._numbers = _Numbers.from_buffer(mmap.mmap(descriptor, mmap.PAGESIZE))
        self._lock = Lock()

    @classmethod
    def shared(cls) -> SharedState:
        """Create a state whose ``descriptor`` a child can inherit."""
        with tempfile.TemporaryFile() as file:
            file.truncate(mmap.PAGESIZE)
            return cls(os.dup(file.fileno()))

    @property
    def phase(self) -> Phase:
        return Phase(self._numbers.phase)

    @property
    def steps(self) -> int:
        return int(self._numbers.steps)

    @property
    def commits(self) -> int:
        return int(self._numbers.commits)

    def enter(self, phase: Phase) -> None:
        """Set the phase of the engine's thread."""
        self._numbers.phase = phase

    def step(self) -> None:
        """Count a step that begins."""
        self._numbers.steps += 1
        self._numbers.phase = Phase.STEPPING

    def commit(self) -> None:
        """Count a committed image. Thread-safe."""
        with self._lock:
            self._numbers.commits += 1


def from_environment() -> tuple[SharedState, str | None]:
    """Return the state that the supervisor reads and the worker's name; without a supervisor private memory and None.

    The variable is removed: processes that this one starts are not the supervisor's children.
    """
    text = os.environ.pop(SUPERVISED, "")
    if not text:
        return SharedState(), None
    descriptor, _, name = text.partition(":")
    return SharedState(int(descriptor)), name
