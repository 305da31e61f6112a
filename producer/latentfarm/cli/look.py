"""``status``, ``jobs`` and ``job``: how far it is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from latentfarm.batch import BatchStatus, JobStatus
from latentfarm.cli import options
from latentfarm.cli.options import print_json
from latentfarm.cli.progress import duration
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.job import JobState, parse_job_name

_COLUMNS = ("batch", "model", "state", "total", "pending", "leased", "done", "failed", "cancelled")


def status(
    batch: Annotated[str | None, typer.Argument(metavar="[BATCH]", help="One batch; all of them if left out.")] = None,
    as_json: options.Json = False,
) -> None:
    """Say how far a batch is, or all of them.

    Example: `latentfarm status cats --json`
    """
    farm = Farm.from_env()
    if batch is not None:
        found = farm.batch(batch).status()
        if as_json:
            print_json(found.model_dump())
        else:
            _print_table([found])
        return
    statuses = [each.status() for each in farm.batches()]
    if as_json:
        print_json([each.model_dump() for each in statuses])
    elif statuses:
        _print_table(statuses)


def _print_table(statuses: list[BatchStatus]) -> None:
    rows: list[tuple[str, ...]] = [(*_COLUMNS, "images/s", "ETA")]
    for each in statuses:
        rate = "-" if each.images_per_s is None else f"{each.images_per_s:.2f}"
        eta = "-" if each.eta_s is None or each.complete else duration(each.eta_s)
        rows.append((*(str(getattr(each, name)) for name in _COLUMNS), rate, eta))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def jobs(
    batch: options.BatchName,
    state: Annotated[
        str | None, typer.Option(help=f"Only jobs in this state: {', '.join(s.word for s in JobState)}.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the jobs of a batch, a line each (with --json a JSON object a line).

    Example: `latentfarm jobs cats --state failed`
    """
    for each in Farm.from_env().batch(batch).jobs(state=_state(state)):
        if as_json:
            typer.echo(json.dumps(each.model_dump(), ensure_ascii=False))
        else:
            error = f"  {each.error['code']}: {each.error['message']}" if each.error else ""
            typer.echo(f"{each.id}  {each.state}{error}")


def _state(word: str | None) -> JobState | None:
    if word is None:
        return None
    known = {state.word: state for state in JobState}
    if word not in known:
        raise InputError(f"--state {word!r}: write one of {', '.join(known)}")
    return known[word]


def job(
    name: Annotated[str, typer.Argument(metavar="BATCH/INDEX", help="The job's id.")],
    as_json: options.Json = False,
) -> None:
    """Show one job: its state, and what its receipt or its failure says.

    Example: `latentfarm job cats/17 --json`
    """
    batch, index = parse_job_name(name)
    found = Farm.from_env().batch(batch).job(index)
    if as_json:
        print_json(found.model_dump())
    else:
        _print_job(found)


def _print_job(found: JobStatus) -> None:
    for field, value in found.model_dump(exclude_none=True).items():
        text = value
        if field == "error":
            text = f"{value['code']}: {value['message']}"
        elif field == "timings":
            text = ", ".join(f"{stage} {seconds:.3f} s" for stage, seconds in value.items())
        typer.echo(f"{field:<9} {text}")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(status)
    app.command()(jobs)
    app.command()(job)
