"""``submit``: store a prompt file as a batch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from latentfarm.batch import Batch
from latentfarm.cli import options
from latentfarm.cli.output import echo_err, echo_notes, plural, print_json
from latentfarm.cli.prompt_options import Rows, prompt_options
from latentfarm.cli.shared import check_folder, fail_if, fetch_into, wait_for, write_contact_sheet
from latentfarm.cli.waiting import echo_warnings, warnings_of
from latentfarm.errors import InputError, format_counts
from latentfarm.farm import Farm
from latentfarm.inputs.policy import InputPolicy
from latentfarm.ledger.constants import DEFAULT_BUDGET
from latentfarm.model_facts import model_defaults
from latentfarm.names import DEFAULT_MODEL, check_batch_name
from latentfarm.submission.request import DEFAULT_MAX_INVALID, Request, SubmitOptions
from latentfarm.submission.validation import VALIDATE_FIRST_ROWS, make_valid_request

Alias = Annotated[str, typer.Option("--model", metavar="ALIAS", help="Alias of the model, as its workers serve it")]
Canary = Annotated[
    int,
    typer.Option(min=0, max=10_000, metavar="N", help="Render and fetch N images, then pause until `resume`; 0: none"),
]
CanaryFolder = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="Folder for the canary's images [default: BATCH-canary]"),
]
Budget = Annotated[
    float, typer.Option(min=0, max=100, metavar="PERCENT", help="Pause at a larger share of failed jobs; 0: never")
]
ValidateFirst = Annotated[
    bool | None,
    typer.Option(
        "--validate-first/--no-validate-first",
        help=f"Validate all rows before any job runs [default: the first {VALIDATE_FIRST_ROWS:,}]",
    ),
]
MaxInvalid = Annotated[
    float,
    typer.Option(min=0, max=100, metavar="PERCENT", help="Stop at a larger share of invalid rows while streaming"),
]
Webhook = Annotated[
    str, typer.Option(metavar="URL", help="https URL to notify when the batch is complete or cancelled")
]

_PROGRESS_INTERVAL_S = 5.0


@prompt_options
def submit(
    file: options.PromptFile,
    rows: Rows,
    batch: options.NewBatch = None,
    model: Alias = DEFAULT_MODEL,
    priority: options.Priority = 0,
    preempt: options.Preempt = False,
    canary: Canary = 0,
    output: CanaryFolder = None,
    force: options.Force = False,
    failure_budget: Budget = 100 * DEFAULT_BUDGET,
    validate_first: ValidateFirst = None,
    max_invalid: MaxInvalid = 100 * DEFAULT_MAX_INVALID,
    webhook: Webhook = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until every job has ended")] = False,
    as_json: options.Json = False,
) -> None:
    """Submit a prompt file as a batch, and print the batch's name.

    The same file with the same options finds its batch again; an interrupted submission continues.

    Example: `latentfarm submit prompts.jsonl --batch cats --num-inference-steps 30`
    """
    if output is not None and not canary:
        raise InputError("--output is the folder of a canary's images; add --canary N, or use `latentfarm fetch`")
    rules = SubmitOptions(
        priority=priority,
        preempt=preempt,
        canary=canary,
        failure_budget=failure_budget / 100,
        webhook=webhook,
        validate_first=validate_first,
        max_invalid=max_invalid / 100,
    )
    farm = Farm.from_env()
    request = make_valid_request(
        file,
        rules,
        find_facts=lambda request: farm.facts_for(request, batch),
        reading=rows.reading,
        client=farm.bucket.client,
        inputs=InputPolicy.of_user(farm.settings, farm.bucket, file),
        model=model,
        expansion=rows.expansion,
        **rows.defaults,
    )
    name = request.name if batch is None else check_batch_name(batch)
    folder = output or Path(f"{name}-canary")
    if canary:
        check_folder(folder, name, request, force=force)
    submitted = farm.enqueue(request, rules, batch=name, progress=_Progress())
    warnings = _report(submitted, request, as_json=as_json)
    if canary:
        _show_canary(submitted, folder, force=force, known=warnings)
    if wait:
        status = wait_for(submitted, known=warnings)
        fail_if(not status.succeeded)
    fail_if(submitted.rejected)


def _report(submitted: Batch, request: Request, *, as_json: bool) -> list[str]:
    """Print the name, the notes, why jobs wait and what is unknown of the model; return the last two."""
    status = submitted.status()
    warnings = [*warnings_of(submitted.connection.ledger, status), *_unknown_defaults(request)]
    if as_json:
        summary = {"batch": submitted.name, "model": status.model, "total": status.total}
        print_json({**summary, "rejected": submitted.rejected, "notes": submitted.notes, "warnings": warnings})
    else:
        typer.echo(submitted.name)
    echo_notes(submitted.notes)
    if submitted.rejected:
        count = plural(sum(submitted.rejected.values()), "invalid row")
        echo_err(f"{count} became failed jobs{format_counts(submitted.rejected)}")
    echo_warnings({submitted.name: warnings})
    return warnings


def _unknown_defaults(request: Request) -> list[str]:
    """Return that the steps and guidance of rows may not be the model's own, if they may not."""
    wanted = model_defaults(None)
    if request.facts is not None or request.model == DEFAULT_MODEL or request.defaults.given().keys() >= wanted.keys():
        return []
    steps, scale = wanted["num_inference_steps"], wanted["guidance_scale"]
    return [
        f"no worker has announced the model {request.model!r} yet: rows that set no steps or guidance get {steps} "
        f"steps and a scale of {scale}, and sizes and schedulers are not checked"
    ]


def _show_canary(batch: Batch, directory: Path, *, force: bool, known: list[str]) -> None:
    status = wait_for(batch, known=known)
    write_contact_sheet(fetch_into(batch, directory, force=force))
    if not status.is_final:
        echo_err(f"the other jobs are paused: `latentfarm resume {batch.name}`, or `latentfarm cancel {batch.name}`")


class _Progress:
    """Prints every few seconds how many jobs are stored. A short submission prints nothing."""

    def __init__(self) -> None:
        self._printed_at = time.monotonic()

    def __call__(self, jobs: int) -> None:
        now = time.monotonic()
        if now - self._printed_at >= _PROGRESS_INTERVAL_S:
            self._printed_at = now
            echo_err(f"{jobs:,} jobs stored; workers may already render them")
