"""Write a prompt file and read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentfarm.job import Row
from latentfarm.submission.prompts import LocatedRow, ReadOptions, RowError, Source, open_source

KEEP = ReadOptions(keep_columns=True)


def found(file: Path, content: str | bytes, options: ReadOptions | None = None) -> list[LocatedRow | RowError]:
    """Write a file and read it."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(open_source(file, options or ReadOptions()).read())


def rows(file: Path, content: str | bytes, options: ReadOptions | None = None) -> list[Row]:
    """Return the rows of a file without row errors."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return rows_of(open_source(file, options or ReadOptions()))


def rows_of(source: Source) -> list[Row]:
    """Return the rows of a source without row errors."""
    entries = list(source.read())
    assert [entry.text for entry in entries if isinstance(entry, RowError)] == []
    return [entry.row for entry in entries if isinstance(entry, LocatedRow)]


def errors_of(source: Source) -> list[RowError]:
    """Return every row error of a source."""
    return [entry for entry in source.read() if isinstance(entry, RowError)]


def row_errors(file: Path, content: str | bytes, options: ReadOptions | None = None) -> list[tuple[str, str]]:
    """Return reason and text of every row error."""
    return [(entry.reason, entry.text) for entry in found(file, content, options) if isinstance(entry, RowError)]


def given(row: Row) -> dict[str, Any]:
    """Return the fields that a row sets."""
    return row.model_dump(exclude_none=True)
