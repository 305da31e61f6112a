"""Child processes of a local farm: each writes a log, stops in order, and is killed if it does not."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from latentfarm.child_process import start_child
from latentfarm.errors import UnavailableError

_TAIL_LINES = 8


class ManagedProcess:
    """One child process.

    Args:
        name: Its name in messages.
        command: Program and arguments.
        log: The file to which its output is appended.
        env: Variables that are added to those of this process.
        lock: A locked file; the lock lasts until the child ends too.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        lock: IO[str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            inherited = () if lock is None else (lock.fileno(),)
            environment = {**os.environ, **(env or {})}
            self._process = start_child(command, env=environment, output=output, pass_fds=inherited)

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._process.poll()

    def require_alive(self) -> None:
        """Check that the process runs.

        Raises:
            UnavailableError: It has ended. The message contains the end of its log.
        """
        if (code := self.exit_code()) is not None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise UnavailableError(f"{self.name} {how}; {self.log} ends with:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    def terminate(self) -> None:
        """Send SIGTERM if the process runs."""
        if self.exit_code() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait_or_kill(self, timeout_s: float) -> int:
        """Wait ``timeout_s`` seconds for the process to end, then kill it; return the exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
