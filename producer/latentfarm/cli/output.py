"""Output of commands: data on stdout, messages on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

import typer


def echo_err(text: str) -> None:
    """Print one message on stderr at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_json(data: object) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print an aligned table on stdout. The first row holds the headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@contextmanager
def binary_stdout() -> Iterator[IO[bytes]]:
    """Yield stdout for bytes. If its reader closes it, as ``head`` does, the command ends with exit code 0."""
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Python flushes stdout at exit, and would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def echo_notes(notes: Mapping[str, int]) -> None:
    """Print on stderr what was mapped, dropped or chosen, and in how many rows."""
    for sentence, rows in notes.items():
        echo_err(f"note: {sentence} ({plural(rows, 'row')})")


def plural(count: int, noun: str) -> str:
    """Return the count with its noun: ``1 job``, ``2 jobs``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_duration(seconds: float) -> str:
    """Return a duration such as 48 s, 3 min 20 s or 5 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
