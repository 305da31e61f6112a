"""The folder of a local farm: whether a farm runs there, who uses it, and how to reach it.

Each answer depends on locks of the kernel, which end with the processes that hold them. So a file that a killed process
has left means nothing. Only the standard library is imported, because every command reads this folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from latentfarm.errors import InputError

#: seconds in which other commands may check whether an owner lives, which takes its lock for an instant
_CHECKED_S = 1.0
_POLL_S = 0.05
#: seconds in which an owner stops its workers and servers, at most
_STOP_S = 45.0
#: bytes that the servers need on the disk: a store refuses an image that does not fit
_MIN_FREE = 1 << 20
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
#: locks of the farms that this process uses
_users: list[IO[str]] = []
#: the folders of those that it uses or runs
_folders: list[FarmFolder] = []


def explain_outage() -> str | None:
    """Return why a farm that this process uses or runs does not work, with the cure; None if it should."""
    return next((text for folder in _folders if (text := folder.outage())), None)


class FarmRunsError(InputError):
    """Another process runs a farm in this folder."""


class FarmFolder:
    """The locks and the connection file of a folder.

    - ``lock``: held by the process that runs the farm.
    - ``servers.lock``: held by it and by its servers, which may live a moment longer.
    - ``users.lock``: shared by the commands that use the farm.
    - ``farm.json``: how to reach the farm; readable by its owner only, because it has the store's key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / "farm.json"

    def read(self) -> dict[str, Any] | None:
        """Return how to reach the farm that runs here, or None if none does.

        Raises:
            InputError: the file cannot be read, or the farm runs under another path or on another host.
        """
        if not self.runs():
            # the file may be of a farm that was killed, or copied from elsewhere
            return None
        try:
            text = self._file.read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(
                f"{self._file} cannot be read: {error.strerror}; run the command as the user who started the farm"
            ) from None
        try:
            fields: dict[str, Any] = json.loads(text)
            host, folder = fields.pop("host", None), fields.pop("folder", None)
        except (ValueError, AttributeError):
            cure = f"stop process {self._owner()}, and start the farm again"
            raise InputError(f"{self._file} is damaged; {cure}") from None
        if host not in {None, socket.gethostname()}:
            raise InputError(f"the farm in {self.path} runs on the host {host}; run the command there")
        if folder not in {None, str(self.path.resolve())}:
            cure = f"stop process {self._owner()}, and start the farm again"
            raise InputError(f"the farm in {self.path} was started as {folder}, and the folder was moved; {cure}")
        return fields

    def has_data(self) -> bool:
        """Return whether a farm has run here before."""
        return (self.path / "redis").is_dir()

    def runs(self) -> bool:
        """Return whether a process runs a farm here."""
        try:
            with (self.path / "lock").open() as lock:
                return not _try_lock(lock, fcntl.LOCK_SH)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}; use another folder") from None

    def outage(self) -> str | None:
        """Return why the servers of a farm here do not work, with the cure; None if they should."""
        if not self.runs():
            return f"the farm in {self.path} has stopped; run `latentfarm up`, or `render` again: it continues"
        return self.disk_problem()

    def disk_problem(self) -> str | None:
        """Return why nothing can be stored here, with the cure, or None if it can."""
        probe = self.path / f"probe.{os.getpid()}"
        try:
            if shutil.disk_usage(self.path).free < _MIN_FREE:
                return self._unwritable(errno.ENOSPC)
            # a quota is no limit of the disk
            probe.write_bytes(bytes(_MIN_FREE // 4))
        except OSError as error:
            return self._unwritable(error.errno) if error.errno in _DISK_ERRORS else None
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
        return None

    def claim(self) -> Claim:
        """Become the owner.

        Raises:
            FarmRunsError: another process runs a farm here.
            InputError: the folder cannot be written, or servers of an earlier farm do not end.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise InputError(self._unwritable(error.errno)) from None
        deadline = time.monotonic() + _CHECKED_S
        while not _try_lock(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                lock.close()
                raise FarmRunsError(
                    f"a farm already runs in {self.path} (process {self._owner()}); use it, or stop it first"
                )
            time.sleep(_POLL_S)
        try:
            return Claim(self, lock)
        except OSError as error:
            lock.close()
            raise InputError(self._unwritable(error.errno)) from None

    def use(self) -> dict[str, Any] | None:
        """Keep the farm that runs here until this process ends; return how to reach it, or None if none runs.

        A farm that stops is waited for.

        Raises:
            InputError: see ``read``; or the farm does not stop.
        """
        deadline = time.monotonic() + _STOP_S
        while (found := self.read()) is not None:
            try:
                users = (self.path / "users.lock").open()
            except FileNotFoundError:
                # a farm of an earlier version has no such file
                return found
            if _try_lock(users, fcntl.LOCK_SH):
                _users.append(users)
                _folders.append(self)
                # the owner may have ended before the lock was taken
                return self.read()
            users.close()
            if time.monotonic() > deadline:
                raise InputError(f"the farm in {self.path} has been stopping for long; end process {self._owner()}")
            time.sleep(_POLL_S)
        return None

    def _unwritable(self, number: int | None) -> str:
        """Return that the folder cannot be written, for this error number, with the cure."""
        full = number in {errno.ENOSPC, errno.EDQUOT}
        cure = "free some space on its disk" if full else "run the command in a folder of yours"
        return f"{self.path.resolve()} cannot be written: {os.strerror(number or 0)}; {cure}"

    def _owner(self) -> str:
        with suppress(OSError):
            return (self.path / "lock").read_text().strip() or "unknown"
        return "unknown"


class Claim:
    """The right to run a farm in a folder."""

    def __init__(self, folder: FarmFolder, lock: IO[str]) -> None:
        self._folder = folder
        self._lock = lock
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        (folder.path / "farm.json").unlink(missing_ok=True)
        self._users = (folder.path / "users.lock").open("a")
        #: for the servers to inherit
        self.servers = (folder.path / "servers.lock").open("a")
        _folders.append(folder)

    def wait_for_servers(self, timeout_s: float) -> None:
        """Wait for the servers of an earlier owner that was killed: two must not write the same files.

        Raises:
            InputError: they do not end.
        """
        deadline = time.monotonic() + timeout_s
        while not _try_lock(self.servers, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise InputError(f"servers of an earlier farm still use {self._folder.path}; end them first")
            time.sleep(_POLL_S)

    def publish(self, fields: dict[str, Any]) -> None:
        """Write how to reach the farm."""
        file = self._folder.path / "farm.json"
        place = {"host": socket.gethostname(), "folder": str(self._folder.path.resolve())}
        fresh = file.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            json.dump(fields | place, out)
        fresh.replace(file)

    def in_use(self) -> bool:
        """Return whether other commands use the farm. From False on, no further command can."""
        return not _try_lock(self._users, fcntl.LOCK_EX)

    def retract(self) -> None:
        """Let no further command reach the farm."""
        (self._folder.path / "farm.json").unlink(missing_ok=True)

    def release(self) -> None:
        """Let another process become the owner."""
        _folders.remove(self._folder)
        for file in (self.servers, self._users, self._lock):
            file.close()


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # such as a network file system without locks
        raise InputError(f"{file.name} cannot be locked: {error.strerror}; run the command on a local disk") from None
    return True
