"""``status``: the progress of one batch or all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from latentfarm.batch_state import BatchState
from latentfarm.batch_status import BatchStatus
from latentfarm.cli import options
from latentfarm.cli.output import echo_err, print_columns, print_json
from latentfarm.cli.shared import statuses_of, worker_data
from latentfarm.cli.status_text import format_eta, format_failures, format_rate, format_truncations
from latentfarm.cli.waiting import echo_warnings
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.ledger.webhook_outbox import WebhookOutbox
from latentfarm.waiting import wait_reasons

_COLUMNS = ("batch", "model", "state", "priority")
_JOBS = ("total", "pending", "leased", "done", "failed", "cancelled")


def status(
    batch: Annotated[str | None, typer.Argument(metavar="[BATCH]", help="Name of the batch [default: all]")] = None,
    state: Annotated[
        str | None, typer.Option(metavar="STATE", help="Only batches in this state, as listed above")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List interactive batches too")] = False,
    as_json: options.Json = False,
) -> None:
    """Show the progress of one batch or all, oldest first.

    For one batch it also shows why it is paused, its errors by code, truncated prompts and its webhook. Warnings report
    why jobs wait. With --json each batch includes them, and the workers of its model.

    The states are opening, open, paused, drafted, complete, cancelled, deleting and recovering. Each request for images
    to `latentfarm serve` makes an interactive batch, which is deleted after a day. A batch is drafted when all its jobs
    have ended, and some of them wait as drafts: finish or discard them.

    Example: `latentfarm status cats --json`
    """
    farm = Farm.from_env()
    if batch is not None:
        if state is not None or every:
            option = "--state" if state is not None else "--all"
            raise InputError(f"{option} selects among all batches; leave out either it or BATCH")
        found = [farm.batch(batch).status()]
    else:
        wanted = options.require_choice("--state", state, list(BatchState)) if state is not None else None
        names = farm.ledger.batches(interactive=every)
        found = [each for each in statuses_of(farm, names) if wanted in {None, each.state}]
        if not every and (omitted := farm.ledger.count_interactive()):
            batches = "batch is" if omitted == 1 else "batches are"
            echo_err(f"{omitted:,} interactive {batches} left out; --all lists all")
    warnings = wait_reasons(farm.ledger, found)
    if as_json:
        data = [{**_with_workers(farm, each), "warnings": warnings.get(each.batch, [])} for each in found]
        print_json(data if batch is None else data[0])
        return
    _print_table(found)
    if batch is not None:
        _print_details(farm, found[0])
    echo_warnings(warnings)


def _with_workers(farm: Farm, found: BatchStatus) -> dict[str, Any]:
    return {**found.model_dump(mode="json"), "workers": [worker_data(worker) for worker in farm.workers(found.model)]}


def _print_table(statuses: Sequence[BatchStatus]) -> None:
    if not statuses:
        return
    # most farms have no drafts
    columns = (*_COLUMNS, *_JOBS, *(("drafted",) if any(each.drafted for each in statuses) else ()))
    rows: list[tuple[str, ...]] = [(*columns, "images/s", "ETA")]
    rows += [
        (*(str(getattr(each, name)) for name in columns), format_rate(each), format_eta(each)) for each in statuses
    ]
    print_columns(rows)


def _print_details(farm: Farm, found: BatchStatus) -> None:
    if found.paused_by:
        typer.echo(f"paused   {found.paused}")
    if found.failed:
        typer.echo(f"errors   {format_failures(found)}")
    if found.truncated:
        typer.echo(f"prompts  {format_truncations(found)}")
    if found.webhook:
        problem = WebhookOutbox(farm.ledger).last_error(found.batch)
        typer.echo(f"webhook  {found.webhook}" + (f": {problem}" if problem else ""))
