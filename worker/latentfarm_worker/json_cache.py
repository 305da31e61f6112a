"""Values that outlive a process, in a JSON file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


class JsonCache(Generic[T]):
    """A JSON file with values of type ``kind`` by key. A missing or invalid file has none, and is written again."""

    def __init__(self, file: Path, kind: type[T]) -> None:
        self._file = file
        self._record = TypeAdapter(dict[str, kind])  # type: ignore[valid-type]

    def read(self) -> dict[str, T]:
        """Return all values."""
        try:
            return self._record.validate_json(self._file.read_bytes())
        except (OSError, ValueError):
            return {}

    def replace(self, values: dict[str, T]) -> None:
        """Write all values; the file is the old or the new one at any time.

        Raises:
            OSError: the folder cannot be written to.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(f".{os.getpid()}")
        try:
            fresh.write_bytes(self._record.dump_json(values, indent=1))
            fresh.replace(self._file)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
