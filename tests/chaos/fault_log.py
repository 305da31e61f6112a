"""The workers of a run, its faults, and what figures are computed from."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.network import Link
from tests.support.fork_server import ForkedProcess


@dataclass
class Replica:
    """How one worker is started, and its current process."""

    name: str
    entry: str
    arguments: Mapping[str, Any]
    env: Mapping[str, str]
    link: Link
    #: the process is a supervisor, and the worker its child
    supervised: bool = False
    process: ForkedProcess | None = None
    stopped: bool = False
    held: bool = False
    #: when it was sent SIGTERM or killed, in seconds of CLOCK_MONOTONIC
    signalled_s: float | None = None
    killed: bool = False
    #: when the child of a supervisor was killed last
    child_killed_s: float = 0.0
    gone_s: float | None = None
    #: it is requested to end by the ledger, which may forget it
    drained: bool = False

    @property
    def healthy(self) -> bool:
        """Whether no fault is injected into it now."""
        return self.process is not None and not (self.stopped or self.held or self.killed) and self.signalled_s is None

    def worker_pids(self) -> list[int]:
        """Return the pid of the worker's own process, if it runs."""
        if self.process is None or not self.supervised:
            return [self.process.pid] if self.process else []
        with suppress(OSError):
            return [
                int(pid)
                for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            ]
        return []

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the worker's own process group; a supervisor gets only what requests its end."""
        if self.supervised and number != signal.SIGTERM:
            for pid in self.worker_pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        elif self.process is not None:
            self.process.send(number)


@dataclass(frozen=True)
class Kill:
    """A process that was killed with what it held."""

    at_s: float
    pid: int


@dataclass(frozen=True)
class Return:
    """Redis is available again to these workers, which have no other fault."""

    at_s: float
    pids: tuple[int, ...]


@dataclass(frozen=True)
class Spell:
    """A fault from its begin to its end, and the processes of the workers that should work again then.

    ``shared``: it is of Redis or of the store.
    """

    kind: str
    began_s: float
    ended_s: float
    pids: tuple[int, ...]
    shared: bool = True


@dataclass
class FaultLog:
    """The faults of a run, and what figures are computed from."""

    faults: list[str] = field(default_factory=list)
    #: start and end of each fault of Redis or the store
    disturbances: list[tuple[float, float]] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    returns: list[Return] = field(default_factory=list)
    spells: list[Spell] = field(default_factory=list)
    #: when a replica of Redis took over from one that had been killed
    failovers_s: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
