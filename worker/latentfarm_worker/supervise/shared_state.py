"""A worker's pulse: three numbers in memory that it shares with its supervisor.

Nothing but the standard library is imported here: the supervisor must stay small.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from enum import IntEnum
from threading import Lock

#: how a supervisor tells its child of the shared memory and of its name: "<file descriptor>:<worker>"
SUPERVISED = "LATENTFARM_SUPERVISED"


class Phase(IntEnum):
    """What the engine's thread does."""

    LOADING = 0
    IDLE = 1
    STEPPING = 2


class _Numbers(ctypes.Structure):
    # aligned words: each is read and written whole, whoever looks
    _fields_ = (("phase", ctypes.c_uint64), ("steps", ctypes.c_uint64), ("commits", ctypes.c_uint64))


class SharedState:
    """Phase, steps begun and images committed, in a file without a name that a child inherits open.

    It outlives the child, so the counters go on where the one before it died.
    """

    def __init__(self, descriptor: int = -1) -> None:
        """Use an open file of a page, or memory that nobody else sees."""
        self.descriptor = descriptor
        self._numbers = _Numbers.from_buffer(mmap.mmap(descriptor, mmap.PAGESIZE))
        self._lock = Lock()

    @classmethod
    def shared(cls) -> SharedState:
        """Return a pulse whose ``descriptor`` a child can inherit."""
        with tempfile.TemporaryFile() as file:
            file.truncate(mmap.PAGESIZE)
            return cls(os.dup(file.fileno()))

    @property
    def phase(self) -> Phase:
        """What the engine's thread does now."""
        return Phase(self._numbers.phase)

    @property
    def steps(self) -> int:
        """Steps begun."""
        return int(self._numbers.steps)

    @property
    def commits(self) -> int:
        """Images committed."""
        return int(self._numbers.commits)

    def enter(self, phase: Phase) -> None:
        """Say what the engine's thread does from now on."""
        self._numbers.phase = phase

    def step(self) -> None:
        """Say that a step begins."""
        self._numbers.steps += 1
        self._numbers.phase = Phase.STEPPING

    def commit(self) -> None:
        """Count an image; several threads do."""
        with self._lock:
            self._numbers.commits += 1


def from_environment() -> tuple[SharedState, str | None]:
    """Return the pulse that the supervisor reads and the worker's name; one that nobody reads, and None, without one.

    The answer is in the environment once: what this process starts is not the supervisor's child.
    """
    told = os.environ.pop(SUPERVISED, "")
    if not told:
        return SharedState(), None
    descriptor, _, name = told.partition(":")
    return SharedState(int(descriptor)), name
