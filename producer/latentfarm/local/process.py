"""Child processes that never outlive us: started with a log, ended in order, killed when they do not listen."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from latentfarm.errors import UnavailableError

_PR_SET_PDEATHSIG = 1
_TAIL_LINES = 8


class ManagedProcess:
    """One child process, its output in a log file."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                # a terminal's Ctrl-C is for us alone: the order in which the children end is ours to keep
                start_new_session=True,
                # we start children before any thread of ours, which is when a preexec_fn is safe
                preexec_fn=_tie_to_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.poll()

    def require_alive(self) -> None:
        """Do nothing while the process runs.

        Raises:
            UnavailableError: it has ended; the message holds the end of its log.
        """
        if (code := self.exit_code()) is not None:
            raise UnavailableError(f"{self.name} ended with exit code {code}; {self.log} ends with:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    def terminate(self) -> None:
        """Ask the process to end."""
        if self.exit_code() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait_or_kill(self, timeout_s: float) -> int:
        """Wait for the end, kill after ``timeout_s``; return the exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _tie_to_parent() -> None:
    """Have the kernel end this process when its parent dies, even of kill -9."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
