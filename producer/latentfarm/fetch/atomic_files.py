"""Write files atomically: a file is complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from latentfarm.errors import InputError


@contextmanager
def atomic_write(file: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing. It becomes ``file`` at the end, and is removed on an error.

    Raises:
        InputError: the disk or the folder cannot be written to.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as opened:
            yield opened
        temporary.replace(file)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise write_error(file, error) from error
        raise


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
        Path(temporary).unlink(missing_ok=True)
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
