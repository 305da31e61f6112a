"""Write files atomically: a file is complete or absent."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from latentfarm.errors import InputError


@contextmanager
def atomic_write(file: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing. It becomes ``file`` at the end, and is removed on an error.

    A device or a pipe, such as ``/dev/stdout``, is written to directly.

    Raises:
        InputError: the disk or the folder cannot be written to.
    """
    temporary = file.parent / f".{file.name}.{os.getpid()}"
    try:
        if _is_special(file):
            with file.open("wb") as opened:
                yield opened
            return
        with temporary.open("wb") as opened:
            yield opened
        temporary.replace(file)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise write_error(file, error) from error
        raise


def _is_special(file: Path) -> bool:
    """Return whether a path must not be replaced by a file.

    Raises:
        OSError: it is a folder, or its name is too long.
    """
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return not stat.S_ISREG(mode)


def _remove(temporary: Path) -> None:
    # the folder itself may be missing, or no folder
    with suppress(OSError):
        temporary.unlink()


def atomic_write_bytes(file: str, body: bytes) -> None:
    """Write a small file. ``file`` is a string: a ``Path`` would cost as much CPU as the writing.

    Raises:
        InputError: the disk or the folder cannot be written to.
    """
    folder, _, name = file.rpartition(os.sep)
    temporary = f"{folder}{os.sep}.{name}.{os.getpid()}"
    try:
        with open(temporary, "wb") as opened:  # noqa: PTH123
            opened.write(body)
        os.replace(temporary, file)  # noqa: PTH105
    except OSError as error:
        _remove(Path(temporary))
        raise write_error(Path(file), error) from error


def make_folder(folder: Path) -> None:
    """Create a folder, unless it exists.

    Raises:
        InputError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


def write_error(file: Path, error: OSError) -> InputError:
    """Return the error for a file that cannot be written."""
    return InputError(f"{file} cannot be written: {error.strerror}; correct that and run the same command again")
