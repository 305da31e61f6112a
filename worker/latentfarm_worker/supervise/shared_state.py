"""What a worker's process shares with its supervisor and its successor. Only the standard library is imported."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Sequence
from enum import IntEnum
from threading import Lock

from latentfarm_worker.supervise.at_risk import RECORD_BYTES, AtRisk, AtRiskRecord

#: how a supervisor passes the shared memory and the worker's name to its child: "<file descriptor>:<worker>"
SUPERVISED = "LATENTFARM_SUPERVISED"

_BYTES = mmap.PAGESIZE + RECORD_BYTES


class Phase(IntEnum):
    """What the engine's thread is doing."""

    LOADING = 0
    IDLE = 1
    STEPPING = 2


class _Numbers(ctypes.Structure):
    # aligned words: a process reads and writes each as a whole, without a lock
    _fields_ = (
        ("phase", ctypes.c_uint64),
        ("steps", ctypes.c_uint64),
        ("commits", ctypes.c_uint64),
        ("stopping", ctypes.c_uint64),
    )


class SharedState:
    """Phase, steps begun, images committed and jobs at risk, in an unnamed file that a child inherits open.

    It outlives the child, so the next child counts on from the same numbers and reads which jobs were at risk.
    """

    def __init__(self, descriptor: int = -1) -> None:
        """Map an open file, or private memory if there is no descriptor."""
        self.descriptor = descriptor
        memory = mmap.mmap(descriptor, _BYTES)
        self._numbers = _Numbers.from_buffer(memory)
        self._record = AtRiskRecord(memoryview(memory)[mmap.PAGESIZE :])
        self._lock = Lock()

    @classmethod
    def shared(cls) -> SharedState:
        """Create a state whose ``descriptor`` a child can inherit."""
        return cls(_unnamed_file())

    @property
    def phase(self) -> Phase:
        return Phase(self._numbers.phase)

    @property
    def steps(self) -> int:
        return int(self._numbers.steps)

    @property
    def commits(self) -> int:
        return int(self._numbers.commits)

    @property
    def stopping(self) -> bool:
        """Whether this process was requested to stop, by a signal or a spot notice."""
        return bool(self._numbers.stopping)

    def begin(self) -> None:
        """Begin with a new process, which loads its model."""
        self._numbers.stopping = 0
        self.enter(Phase.LOADING)

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

    def stop(self) -> None:
        """Record that the process was requested to stop. Safe in a signal handler."""
        self._numbers.stopping = 1

    # -- jobs at risk ----------------------------------------------------------------------------------------

    def record_at_risk(self, leases: Sequence[tuple[str, int]], *, lone: bool) -> None:
        """Record the jobs of the next call of the device, by name and epoch. Call it before the device is called.

        ``lone`` is true if one job alone takes part. Recording the same again takes no time. A call without jobs may
        be for any of them, such as a measurement of their shape: then it is unknown which are at risk.
        """
        self._record.write(AtRisk(tuple(leases), lone=lone) if leases else None)

    def forget_at_risk(self) -> None:
        """Record that it is unknown which jobs are at risk."""
        self._record.write(None)

    def at_risk(self) -> AtRisk | None:
        """Return the jobs that were recorded last, by this process or the one before it; None if unknown."""
        return self._record.read()


def _unnamed_file() -> int:
    """Return the descriptor of a file whose bytes exist already: a write must not fail because a disk is full."""
    if sys.platform == "linux":
        # needs no disk, which may be full or read-only
        descriptor = os.memfd_create("latentfarm")
        os.posix_fallocate(descriptor, 0, _BYTES)
        return descriptor
    with tempfile.TemporaryFile() as file:
        file.write(bytes(_BYTES))
        file.flush()
        return os.dup(file.fileno())


def from_environment() -> tuple[SharedState, str | None]:
    """Return the state that the supervisor reads and the worker's name; without a supervisor private memory and None.

    The variable is removed: processes that this one starts are not the supervisor's children.
    """
    text = os.environ.pop(SUPERVISED, "")
    if not text:
        return SharedState(), None
    descriptor, _, name = text.partition(":")
    return SharedState(int(descriptor)), name
