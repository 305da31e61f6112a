"""``wait`` and ``fetch``: from a submitted batch to pictures in a folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from latentfarm.batch import Batch, BatchStatus
from latentfarm.cli import options
from latentfarm.cli.options import print_json
from latentfarm.cli.progress import BatchProgress, note
from latentfarm.farm import Farm
from latentfarm.fetch import RESULTS_FILE, Fetched

#: seconds of waiting, more than a worker needs to start, after which a missing one is told of
_NO_WORKER_S = 20.0


def wait_for(
    batch: Batch, *, timeout_s: float | None = None, meanwhile: Callable[[], None] | None = None
) -> BatchStatus:
    """Wait with a progress bar, and tell of failed jobs. ``meanwhile`` runs between two looks."""
    began, told = time.monotonic(), False
    with BatchProgress() as progress:

        def show(status: BatchStatus) -> None:
            nonlocal told
            progress(status)
            if not told and not status.complete and time.monotonic() - began > _NO_WORKER_S:
                told = True
                _tell_of_no_worker(batch, status.model)
            if meanwhile is not None:
                meanwhile()

        try:
            status = batch.wait(timeout_s=timeout_s, progress=show)
        except KeyboardInterrupt:
            note("interrupted; run the same command again to go on")
            raise
    if status.failed:
        note(f"{status.failed} of {status.total} jobs failed: `latentfarm jobs {batch.name} --state failed`")
    return status


def exit_if(failed: int) -> None:
    """End the command with exit code 1 if jobs have failed."""
    if failed:
        raise typer.Exit(1)


def _tell_of_no_worker(batch: Batch, model: str) -> None:
    if not batch.farm.ledger.workers(model):
        note(f"no worker serves {model!r} now; start one with `latentfarm worker` or `latentfarm up`")


def wait(
    batch: options.BatchName,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up after this, with exit code 1.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Return when every job of a batch has ended; exit 1 if one failed.

    Example: `latentfarm wait cats && latentfarm fetch cats -o cats`
    """
    found = Farm.from_env().batch(batch)
    try:
        exit_if(wait_for(found, timeout_s=timeout).failed)
    finally:
        if as_json:
            print_json(found.status().model_dump())


def fetch(batch: options.BatchName, output: options.OutputFolder, as_json: options.Json = False) -> None:
    """Download the finished pictures of a batch and write results.jsonl; what is there already is left alone.

    Example: `latentfarm fetch cats -o cats`
    """
    found = Farm.from_env().batch(batch)
    fetched = fetch_into(found, output)
    if as_json:
        summary = {"batch": batch, "directory": str(output), "downloaded": fetched.downloaded}
        print_json({**summary, "present": fetched.present, "results": str(output / RESULTS_FILE)})
    exit_if(sum(line["state"] == "failed" for line in fetched.lines))


def fetch_into(batch: Batch, directory: Path) -> Fetched:
    """Download and say what was done."""
    fetched = batch.fetch(directory)
    rest = sum(line["state"] != "done" for line in fetched.lines)
    text = f"{fetched.downloaded} files fetched into {directory}, {fetched.present} were there already"
    note(text + (f", {rest} are not done" if rest else ""))
    return fetched


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(wait)
    app.command()(fetch)
