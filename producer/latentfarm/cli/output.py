"""Output of commands: data on stdout, messages on stderr."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TextIO

import typer

_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_FILE_CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, or write to another disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "name a file or folder that you may write"),
    errno.ENAMETOOLONG: "shorten the name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def echo_err(text: str) -> None:
    """Print one message on stderr at once. If stderr cannot be written, as on a full disk, the command goes on."""
    with suppress(OSError):
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
        discard_stdout()
        raise typer.Exit(0) from None


def discard_stdout() -> None:
    """Discard what stdout still holds: Python flushes it at exit, and would fail again."""
    _discard(sys.stdout)


def flush_stderr() -> None:
    """Write what stderr still holds, or discard it: a failure at exit would change the exit code to 120."""
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def describe_file_error(error: OSError) -> str | None:
    """Return what a file's error means and how it is cured, or None for an error of another kind."""
    number, file = error.errno, error.filename
    if number is None or (file is None and number not in _DISK_ERRORS):
        return None
    place = "the output" if file is None else repr(os.fsdecode(file))
    cure = _FILE_CURES.get(number)
    return f"{place}: {error.strerror}{f'; {cure}' if cure else ''}"


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
