"""Run commands in an image's root as a container does: read-only, without capabilities. This needs root."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY, until
from tests.support.processes import children_of

_CONTAIN = REPOSITORY / "tests" / "support" / "deploy" / "contain.sh"


@dataclass(frozen=True)
class Container:
    """A host whose processes run in an image. ``volumes``: folders of this machine by mount point."""

    root: Path
    user: str
    folder: str
    path: str
    volumes: Mapping[str, Path]

    def start(self, command: list[str], environment: Mapping[str, str], *, log: Path) -> subprocess.Popen[bytes]:
        """Start a container."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                self._contained(command),
                env={**environment, "PATH": self.path},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        until(lambda: bool(children_of(process.pid)) or process.poll() is not None, timeout_s=10)
        return process

    def run(self, command: list[str], environment: Mapping[str, str], stdin: str) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        return subprocess.run(
            self._contained(command),
            env={**environment, "PATH": self.path},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Send SIGTERM to the container's first process, as a runtime does."""
        [first] = children_of(process.pid)
        os.kill(first, signal.SIGTERM)

    def _contained(self, command: list[str]) -> list[str]:
        mounts = [f"{target}={source}" for target, source in self.volumes.items()]
        namespaces = ["/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child"]
        return [*namespaces, "/bin/sh", str(_CONTAIN), str(self.root), self.user, self.folder, *mounts, "--", *command]
