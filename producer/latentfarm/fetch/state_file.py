"""The record of the images that were fetched into a folder, for ``--skip-fetched``."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from latentfarm.fetch.atomic_files import write_error

_MARK_BYTES = 16
#: marks per write; a killed fetch loses up to as many, and the next one checks their files again
_MARKS_PER_WRITE = 256


class FetchState:
    """A file with 16 bytes per job, at the job's index: the start of the fetched image's sha256, or zeros.

    It is written during the fetch, so an interrupted fetch has its record too. An image that was rendered again has
    another sha256, as has one of another batch: neither counts as fetched.
    """

    def __init__(self, file: Path) -> None:
        try:
            # "r+" does not create the file, and "a" writes at its end only
            file.touch()
            self._file = file.open("r+b", buffering=0)
        except OSError as error:
            raise write_error(file, error) from error
        self._first, self._marks = 0, bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._file.close()

    def has(self, index: int, sha256: str) -> bool:
        """Return whether the image with this sha256 was fetched."""
        self._file.seek(index * _MARK_BYTES)
        return self._file.read(_MARK_BYTES) == _mark(sha256)

    def add(self, index: int, sha256: str) -> None:
        """Record that an image was fetched."""
        if index * _MARK_BYTES != self._first + len(self._marks) or len(self._marks) >= _MARKS_PER_WRITE * _MARK_BYTES:
            self._write()
            self._first = index * _MARK_BYTES
        self._marks += _mark(sha256)

    def _write(self) -> None:
        self._file.seek(self._first)
        self._file.write(self._marks)
        self._marks.clear()


def _mark(sha256: str) -> bytes:
    return bytes.fromhex(sha256)[:_MARK_BYTES]
