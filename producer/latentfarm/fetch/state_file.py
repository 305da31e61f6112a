"""What earlier fetches into a folder have fetched, for ``--only-new``."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from latentfarm.fetch.atomic_files import cannot_write

_SIZE = 16
#: marks that are written at once; of a fetch that is killed so many may be missing, and are looked at again
_TOGETHER = 256


class FetchState:
    """A file of 16 bytes a job, at the job's index: the beginning of the sha256 of what was fetched, or zeros.

    It is written as the fetch goes on, so an interrupted one has its record too. A picture that was rendered again
    since has another sha256, and so does one of another batch: both are new.
    """

    def __init__(self, file: Path) -> None:
        try:
            # read and write anywhere, creating it if need be; "a" would write at the end only
            file.touch()
            self._file = file.open("r+b", buffering=0)
        except OSError as error:
            raise cannot_write(file, error) from error
        self._first, self._marks = 0, bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._file.close()

    def has(self, index: int, sha256: str) -> bool:
        """Return whether this very picture was fetched."""
        self._file.seek(index * _SIZE)
        return self._file.read(_SIZE) == _mark(sha256)

    def add(self, index: int, sha256: str) -> None:
        """Note that a picture was fetched."""
        if index * _SIZE != self._first + len(self._marks) or len(self._marks) >= _TOGETHER * _SIZE:
            self._write()
            self._first = index * _SIZE
        self._marks += _mark(sha256)

    def _write(self) -> None:
        self._file.seek(self._first)
        self._file.write(self._marks)
        self._marks.clear()


def _mark(sha256: str) -> bytes:
    return bytes.fromhex(sha256)[:_SIZE]
