"""``results``: what became of every job, joined with its prompt, as a stream."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from latentfarm.cli import options
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.fetch.atomic_files import whole_file
from latentfarm.fetch.tables import require_parquet, write_csv, write_jsonl, write_parquet
from latentfarm.job import JobState

StateWords = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help=f"Only jobs in this state: {', '.join(s.word for s in JobState)}. Repeat it, or join several by commas.",
    ),
]
_WRITERS: dict[str, Callable[[IO[bytes], Iterable[dict[str, Any]]], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
}


def states_of(words: list[str] | None) -> frozenset[JobState]:
    """Return the states that ``--state`` names; none if it was left out.

    Raises:
        InputError: there is no such state.
    """
    known = {state.word: state for state in JobState}
    found = [word.strip() for each in words or [] for word in each.split(",")]
    for word in found:
        if word not in known:
            raise InputError(f"--state {word!r}: write one of {', '.join(known)}")
    return frozenset(known[word] for word in found)


def results(
    batch: options.BatchName,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where it goes; stdout if left out.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="jsonl, csv or parquet; by default what FILE's name ends in, else jsonl. In csv and parquet a row's "
            "kept columns are one column, `columns`, of JSON; an error is error_code and error_message; cells are "
            "written unchanged, so in a spreadsheet import them as text.",
        ),
    ] = None,
    state: StateWords = None,
) -> None:
    """Print the results of a batch, a line a job in order: its request and what became of it.

    It costs two objects of the bucket for every 1,000 jobs and no request for a picture, at any time of the batch.

    Example: `latentfarm results cats --state done -o cats.parquet`
    """
    chosen = _format_of(form, output)
    states = states_of(state)
    found = Farm.from_env().batch(batch)
    lines = (line for line in found.results() if not states or line["state"] in {each.word for each in states})
    with whole_file(output) if output is not None else to_reader() as opened:
        _WRITERS[chosen](opened, lines)


def _format_of(form: str | None, output: Path | None) -> str:
    suffix = output.suffix.removeprefix(".").lower() if output is not None else ""
    chosen = form or (suffix if suffix in _WRITERS else "jsonl")
    if chosen not in _WRITERS:
        raise InputError(f"--format {chosen!r}: write one of {', '.join(_WRITERS)}")
    if chosen == "parquet":
        if output is None:
            raise InputError("--format parquet: a terminal cannot take it; write -o FILE")
        require_parquet("--format parquet")
    return chosen


@contextmanager
def to_reader() -> Iterator[IO[bytes]]:
    """Give stdout for bytes; a reader that has seen enough, such as ``head``, ends the command quietly."""
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # what is still buffered must not fail once more when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(results)
