"""What earlier fetches into a folder have fetched, for ``--only-new``."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from latentfarm.fetch.downloads import cannot_write

_SIZE = 16


class FetchRecord:
    """A file of 16 bytes a job, at the job's index: the beginning of the sha256 of what was fetched, or zeros.

    It is written picture by picture, so an interrupted fetch has its record too. A picture that was rendered again
    since has another sha256, and so does one of another batch: both are new.
    """

    def __init__(self, file: Path) -> None:
        try:
            # read and write anywhere, creating it if need be; "a" would write at the end only
            file.touch()
            self._file = file.open("r+b", buffering=0)
        except OSError as error:
            raise cannot_write(file, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, index: int, sha256: str) -> bool:
        """Return whether this very picture was fetched."""
        self._file.seek(index * _SIZE)
        return self._file.read(_SIZE) == _mark(sha256)

    def add(self, index: int, sha256: str) -> None:
        """Note that a picture was fetched."""
        self._file.seek(index * _SIZE)
        self._file.write(_mark(sha256))


def _mark(sha256: str) -> bytes:
    return bytes.fromhex(sha256)[:_SIZE]
