"""Short ways to read what a test wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentfarm.job import Row
from latentfarm.prompts import PlacedRow, Problem, ReadOptions, open_source

KEEP = ReadOptions(keep_columns=True)


def found(file: Path, content: str | bytes, options: ReadOptions | None = None) -> list[PlacedRow | Problem]:
    """Write a file and read it."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(open_source(file, options or ReadOptions()).read())


def rows(file: Path, content: str | bytes, options: ReadOptions | None = None) -> list[Row]:
    """Return the rows of a file that holds no problem."""
    entries = found(file, content, options)
    assert [entry.text for entry in entries if isinstance(entry, Problem)] == []
    return [entry.row for entry in entries if isinstance(entry, PlacedRow)]


def problems(file: Path, content: str | bytes, options: ReadOptions | None = None) -> list[tuple[str, str]]:
    """Return reason and text of every problem."""
    return [(entry.reason, entry.text) for entry in found(file, content, options) if isinstance(entry, Problem)]


def given(row: Row) -> dict[str, Any]:
    """Return what a row says."""
    return row.model_dump(exclude_none=True)
