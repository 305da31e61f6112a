"""``results``: the request and the outcome of every job."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from latentfarm.cli import options
from latentfarm.cli.output import binary_stdout
from latentfarm.cli.shared import parse_job_states, parse_picks
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.fetch.atomic_files import atomic_write
from latentfarm.fetch.openai_results import inline_entry, url_entry, write_openai
from latentfarm.fetch.tables import require_parquet, write_csv, write_jsonl, write_parquet
from latentfarm.storage.bucket import check_expiry
from latentfarm.storage.parallel_get import parallel_reader

_WRITERS: dict[str, Callable[[IO[bytes], Iterable[dict[str, Any]]], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
}
_OPENAI = "openai"


def results(
    batch: options.BatchName,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="File for the results [default: stdout]")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="jsonl, csv, parquet or openai [default: by FILE, or jsonl]"),
    ] = None,
    state: options.JobStates = None,
    pick: options.Picks = None,
    response_format: Annotated[
        str | None,
        typer.Option("--response-format", metavar="WORD", help="url or b64_json, with --format openai [default: url]"),
    ] = None,
    expires: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="Validity of these URLs, 1 to 604800 [default: 3600]")
    ] = None,
) -> None:
    """Print the request and the outcome of every job of a batch, in order.

    It reads two objects for every 1,000 jobs and no image, and works while the batch runs.

    In csv and parquet the kept columns of a row are one JSON column, `columns`, and an error is error_code and
    error_message. Cells are written unchanged: import them into a spreadsheet as text.

    `openai` is the output of OpenAI's batches: a line for each row whose jobs have ended, with an entry for each of its
    images, or with its error. --state done writes what OpenAI's output file has, --state failed,cancelled the error
    file. custom_id is the row's id, or the name of its first job.

    Example: `latentfarm results cats --state done -o cats.parquet`
    """
    chosen = _format_of(form, output)
    if chosen != _OPENAI and (response_format is not None or expires is not None):
        raise InputError("--response-format and --expires are options of --format openai; add it, or leave them out")
    answer = options.require_choice("--response-format", response_format or "url", ["url", "b64_json"])
    expires_s = check_expiry(3600 if expires is None else expires)
    states = {each.word for each in parse_job_states(state)}
    picks = parse_picks(pick)
    found = Farm.from_env().batch(batch)
    with atomic_write(output) if output is not None else binary_stdout() as opened:
        if chosen == _OPENAI:
            bucket = found.connection.bucket
            created = found.connection.ledger.batch(batch).last_ms // 1000
            with parallel_reader(bucket) as read:
                entry = inline_entry(read) if answer == "b64_json" else url_entry(bucket, expires_s=expires_s)
                write_openai(opened, found.results(picks=picks), entry, created=created, states=states)
        else:
            _WRITERS[chosen](
                opened, (line for line in found.results(picks=picks) if not states or line["state"] in states)
            )


def _format_of(form: str | None, output: Path | None) -> str:
    suffix = output.suffix.removeprefix(".").lower() if output is not None else ""
    choices = [*_WRITERS, _OPENAI]
    chosen = options.require_choice("--format", form or (suffix if suffix in _WRITERS else "jsonl"), choices)
    if chosen == "parquet":
        if output is None:
            raise InputError("--format parquet cannot be written to stdout; write -o FILE")
        require_parquet("--format parquet")
    return chosen
