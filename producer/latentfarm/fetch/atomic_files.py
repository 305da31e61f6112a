"""Write files atomically: a file is complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from latentfarm.errors import InputError


@contextmanager
def whole_file(file: Path) -> Iterator[IO[bytes]]:
    """Give a file to write that takes the name ``file`` only when all is written, and leaves nothing otherwise.

    Raises:
        InputError: the disk or the folder does not take it.
    """
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as opened:
            yield opened
        fresh.replace(file)
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise cannot_write(file, error) from error
        raise


def write_whole(file: str, body: bytes) -> None:
    """Write a file so that it is whole or absent; ``file`` is text, for paths cost as much as the writing.

    Raises:
        InputError: the disk or the folder does not take it.
    """
    folder, _, name = file.rpartition(os.sep)
    fresh = f"{folder}{os.sep}.{name}.{os.getpid()}"
    try:
        with open(fresh, "wb") as opened:  # noqa: PTH123
            opened.write(body)
        os.replace(fresh, file)  # noqa: PTH105
    except OSError as error:
        Path(fresh).unlink(missing_ok=True)
        raise cannot_write(Path(file), error) from error


def make_folder(folder: Path) -> None:
    """Make a folder, if it is not there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(file: Path, error: OSError) -> InputError:
    """Return the error that says so."""
    return InputError(f"{file} cannot be written: {error.strerror}; mend that and run the same command again")
