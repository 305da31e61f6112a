"""``submit``: hand a prompt file in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from latentfarm.batch import Batch
from latentfarm.cli import options
from latentfarm.cli.fetch import fetch_into
from latentfarm.cli.options import print_json
from latentfarm.cli.progress import echo_err
from latentfarm.cli.render import write_contact_sheet
from latentfarm.cli.shared import fail_if, wait_for
from latentfarm.errors import InputError, counted
from latentfarm.farm import Farm
from latentfarm.ledger.ledger import DEFAULT_BUDGET
from latentfarm.settings import DEFAULT_MODEL
from latentfarm.submission.request import DEFAULT_MAX_INVALID, SubmitOptions
from latentfarm.submission.validation import CHECK_FIRST_ROWS

Alias = Annotated[str, typer.Option("--model", metavar="ALIAS", help="The alias under which workers serve the model.")]
Canary = Annotated[
    int,
    typer.Option(min=0, max=10_000, metavar="N", help="Render and fetch the first N pictures; `resume` lets go on."),
]
CanaryFolder = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="Where a canary's pictures go; BATCH-canary if open."),
]
Budget = Annotated[
    float,
    typer.Option(min=0, max=100, metavar="PERCENT", help="Pause the batch above this share of failures; 0 never."),
]
CheckFirst = Annotated[
    bool | None,
    typer.Option(
        "--check-first/--stream",
        help="Check the whole file before anything is opened, or open each part as it is stored; "
        f"by default files below {CHECK_FIRST_ROWS:,} rows are checked first.",
    ),
]
MaxInvalid = Annotated[
    float,
    typer.Option(min=0, max=100, metavar="PERCENT", help="Stop a streamed file above this share of wrong rows."),
]
Webhook = Annotated[
    str, typer.Option(metavar="URL", help="An https URL that is told when the batch is complete or cancelled.")
]

_TOLD_EVERY_S = 5.0


@options.prompt_options
def submit(
    file: options.PromptFile,
    rows: options.Rows,
    batch: options.NewBatch = None,
    model: Alias = DEFAULT_MODEL,
    priority: options.Priority = 0,
    canary: Canary = 0,
    output: CanaryFolder = None,
    failure_budget: Budget = 100 * DEFAULT_BUDGET,
    check_first: CheckFirst = None,
    max_invalid: MaxInvalid = 100 * DEFAULT_MAX_INVALID,
    webhook: Webhook = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return when every job has ended.")] = False,
    as_json: options.Json = False,
) -> None:
    """Store a prompt file as a batch and let workers render it; print the batch's name.

    The same file with the same options finds its batch again, and a submission that was cut short goes on.

    Example: `latentfarm submit prompts.jsonl --batch cats --num-inference-steps 30`
    """
    if output is not None and not canary:
        raise InputError("--output is where a canary's pictures go; give --canary N too, or use `latentfarm fetch`")
    rules = SubmitOptions(
        priority=priority,
        canary=canary,
        failure_budget=failure_budget / 100,
        webhook=webhook,
        check_first=check_first,
        max_invalid=max_invalid / 100,
    )
    farm = Farm.from_env()
    submitted = farm.submit(
        file,
        batch=batch,
        model=model,
        rules=rules,
        reading=rows.reading,
        expansion=rows.expansion,
        progress=_Progress(),
        **rows.defaults,
    )
    if as_json:
        status = submitted.status()
        summary = {"batch": submitted.name, "model": model, "total": status.total}
        print_json({**summary, "rejected": submitted.rejected})
    else:
        typer.echo(submitted.name)
    if submitted.rejected:
        wrong = sum(submitted.rejected.values())
        echo_err(f"{wrong} rows were wrong and are failed jobs{counted(submitted.rejected)}")
    if canary:
        _show_canary(submitted, output or Path(f"{submitted.name}-canary"))
    if wait:
        status = wait_for(submitted)
        fail_if(status.failed or not status.complete)
    fail_if(submitted.rejected)


def _show_canary(batch: Batch, directory: Path) -> None:
    status = wait_for(batch)
    write_contact_sheet(fetch_into(batch, directory))
    if not status.over:
        echo_err(f"the other jobs wait: `latentfarm resume {batch.name}`, or `latentfarm cancel {batch.name}`")


class _Progress:
    """Says every few seconds how many jobs are stored; a small submission says nothing."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, jobs: int) -> None:
        """Take note that so many jobs can be leased."""
        now = time.monotonic()
        if now - self._told >= _TOLD_EVERY_S:
            self._told = now
            echo_err(f"{jobs:,} jobs stored; workers may render them already")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(submit)
