"""``results``: the request and the outcome of every job."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from latentfarm.cli import options
from latentfarm.cli.output import binary_stdout
from latentfarm.cli.shared import parse_job_states
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.fetch.atomic_files import atomic_write
from latentfarm.fetch.tables import require_parquet, write_csv, write_jsonl, write_parquet

_WRITERS: dict[str, Callable[[IO[bytes], Iterable[dict[str, Any]]], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
}


def results(
    batch: options.BatchName,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="File for the results [default: stdout]")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="jsonl, csv or parquet [default: by FILE, or jsonl]"),
    ] = None,
    state: options.JobStates = None,
) -> None:
    """Print the request and the outcome of every job of a batch, in order.

    It reads two objects for every 1,000 jobs and no image, and works while the batch runs.

    In csv and parquet the kept columns of a row are one JSON column, `columns`, and an error is error_code and
    error_message. Cells are written unchanged: import them into a spreadsheet as text.

    Example: `latentfarm results cats --state done -o cats.parquet`
    """
    chosen = _format_of(form, output)
    states = {each.word for each in parse_job_states(state)}
    found = Farm.from_env().batch(batch)
    lines = (line for line in found.results() if not states or line["state"] in states)
    with atomic_write(output) if output is not None else binary_stdout() as opened:
        _WRITERS[chosen](opened, lines)


def _format_of(form: str | None, output: Path | None) -> str:
    suffix = output.suffix.removeprefix(".").lower() if output is not None else ""
    chosen = options.require_choice("--format", form or (suffix if suffix in _WRITERS else "jsonl"), list(_WRITERS))
    if chosen == "parquet":
        if output is None:
            raise InputError("--format parquet cannot be written to stdout; write -o FILE")
        require_parquet("--format parquet")
    return chosen
