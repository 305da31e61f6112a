"""The HTTP server of a local farm: ``latentfarm serve`` as a child process."""

from __future__ import annotations

import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from latentfarm.errors import InputError, UnavailableError
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings

#: of the extra `server`
_PACKAGES = ("starlette", "uvicorn", "python_multipart")
_START_TIMEOUT_S = 20.0
_POLL_S = 0.02
#: what `latentfarm serve` prints once it accepts connections
_SERVING = re.compile(r"^serving (http://\S+);", re.MULTILINE)
_FAILED = re.compile(r"^latentfarm: (.+)", re.MULTILINE)


def has_server_packages() -> bool:
    """Return whether a server can run here."""
    return not _missing_packages()


def require_server_packages() -> None:
    """Check that a server can run here.

    Raises:
        InputError: A package is missing. The message names the extra to install.
    """
    if missing := _missing_packages():
        raise InputError(f"the server needs {', '.join(missing)}: pip install 'latentfarm[server]'")


def _missing_packages() -> list[str]:
    return [name for name in _PACKAGES if find_spec(name) is None]


class LocalServer:
    """A server on this machine. Its output is appended to ``log``."""

    def __init__(self, settings: Settings, address: str, *, log: Path) -> None:
        # a log of earlier servers is kept
        self._begin = log.stat().st_size if log.exists() else 0
        if settings.log_format == "auto":
            # people read this log file
            settings = settings.model_copy(update={"log_format": "text"})
        command = [sys.executable, "-m", "latentfarm", "serve", "--address", address]
        self.process = ManagedProcess("the HTTP server", command, log=log, env=settings.environment())

    def wait_for_url(self) -> str:
        """Return the server's URL once it accepts connections.

        Raises:
            UnavailableError: it ended or does not start. The message is its own.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            ended = self.process.exit_code() is not None
            with self.process.log.open("rb") as log:
                log.seek(self._begin)
                text = log.read().decode(errors="replace")
            if found := _SERVING.search(text):
                return found[1]
            if ended and (reason := _FAILED.search(text)):
                raise UnavailableError(reason[1])
            self.process.require_alive()
            if time.monotonic() > deadline:
                self.process.wait_or_kill(0)
                raise UnavailableError(f"the HTTP server does not start; {self.process.log} ends with:\n{text}")
            time.sleep(_POLL_S)
