"""Commands that change running batches. Each is durable, and repeating it changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

import typer

from latentfarm.batch import Batch
from latentfarm.batch_state import FINAL
from latentfarm.cli import options
from latentfarm.cli.output import plural
from latentfarm.cli.status_text import format_failures
from latentfarm.farm import Farm

BatchNames = Annotated[list[str], typer.Argument(metavar="BATCH...", help="Names of batches")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print the status of each batch as one JSON object")]


def pause(
    batches: BatchNames,
    now: Annotated[
        bool, typer.Option("--now", help="Park running images too: `resume` goes on from where they are")
    ] = False,
    as_json: JsonLines = False,
) -> None:
    """Start no more jobs of these batches until `resume`. Running images are completed, or parked with --now.

    Example: `latentfarm pause cats`
    """

    def act(batch: Batch) -> str:
        before = batch.status()
        after = batch.pause(now=now)
        if before.paused_by:
            return f"is already paused: {before.paused}" + (", and its running images are parked" if now else "")
        return f"is {after.state}" + (", and its running images are parked" if now else "")

    _for_each(batches, act, as_json=as_json)


def resume(batches: BatchNames, as_json: JsonLines = False) -> None:
    """Continue these batches after a pause, an exhausted failure budget or a canary.

    Example: `latentfarm resume cats`
    """

    def act(batch: Batch) -> str:
        record = batch.connection.ledger.batch(batch.name)
        after = batch.resume()
        return f"continues: {after.state}" if record.paused_by or record.canary else f"is already {after.state}"

    _for_each(batches, act, as_json=as_json)


def cancel(batches: BatchNames, as_json: JsonLines = False) -> None:
    """End these batches for good.

    Running jobs stop at their next denoising step. Finished images are kept.

    Example: `latentfarm cancel cats dogs`
    """

    def act(batch: Batch) -> str:
        before = batch.status()
        after = batch.cancel()
        if before.state in FINAL:
            return f"is already {before.state}"
        return f"is {after.state}: {after.done} done, {after.failed} failed, {after.cancelled} cancelled"

    _for_each(batches, act, as_json=as_json)


def retry(
    batch: options.BatchName,
    code: Annotated[str | None, typer.Option(metavar="CODE", help="Only jobs with this error code")] = None,
    as_json: JsonLines = False,
) -> None:
    """Run the failed jobs of a batch again, with their attempts reset.

    Example: `latentfarm retry cats --code non_finite`
    """

    def act(found: Batch) -> str:
        count = found.retry(code=code)
        after = found.status()
        if count:
            jobs = plural(count, "job")
            return f"will run {jobs} again after `resume`: {after.paused}" if after.paused_by else f"runs {jobs} again"
        with_code = f" with code {code!r}" if code else ""
        failures = format_failures(after)
        return f"has no failed job{with_code} to run again" + (f"; it has {failures}" if failures else "")

    _for_each([batch], act, as_json=as_json)


def set_priority(
    batch: options.BatchName,
    priority: Annotated[
        int,
        typer.Argument(metavar="N", min=-1000, max=1000, help="-1000 to 1000; batches with a higher one run first"),
    ],
    as_json: JsonLines = False,
) -> None:
    """Change the priority of a batch. It applies to the next leases.

    Example: `latentfarm set-priority cats 10`
    """

    def act(found: Batch) -> str:
        before = found.status().priority
        found.set_priority(priority)
        return f"already has priority {priority}" if before == priority else f"has priority {priority}"

    _for_each([batch], act, as_json=as_json)


# typer would read a negative number as an option
set_priority.context_settings = {"ignore_unknown_options": True}  # type: ignore[attr-defined]


def _for_each(names: list[str], act: Callable[[Batch], str], *, as_json: bool) -> None:
    """Apply ``act`` to each batch and print its result. If a name is unknown, no batch is changed."""
    farm = Farm.from_env()
    for batch in [farm.batch(name) for name in dict.fromkeys(names)]:
        result = act(batch)
        status = json.dumps(batch.status().model_dump(mode="json"), ensure_ascii=False) if as_json else None
        typer.echo(status or f"{batch.name} {result}")
