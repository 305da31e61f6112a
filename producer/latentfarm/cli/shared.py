"""What several commands share."""

from __future__ import annotations

import time
from collections.abc import Callable

import typer

from latentfarm.batch import Batch, BatchStatus
from latentfarm.batch_state import describe_pause
from latentfarm.cli.progress import BatchProgress, echo_err, truncations

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
            if not told and not status.over and time.monotonic() - began > _NO_WORKER_S:
                told = True
                _tell_of_no_worker(batch, status.model)
            if meanwhile is not None:
                meanwhile()

        try:
            status = batch.wait(timeout_s=timeout_s, progress=show)
        except KeyboardInterrupt:
            echo_err("interrupted; run the same command again to go on")
            raise
    if status.failed:
        echo_err(f"{status.failed} of {status.total} jobs failed: `latentfarm jobs {batch.name} --state failed`")
    if status.state == "cancelled":
        echo_err(f"the batch was cancelled; {status.done} of {status.total} jobs were done")
    if status.truncated:
        echo_err(truncations(status))
    if status.stuck:
        echo_err(f"the batch is paused ({describe_pause(status.paused_by, status.paused)}): `latentfarm resume {batch.name}`")
    return status


def fail_if(problem: object) -> None:
    """End the command with exit code 1 if something has gone wrong: jobs have failed, a batch is not complete."""
    if problem:
        raise typer.Exit(1)


def _tell_of_no_worker(batch: Batch, model: str) -> None:
    if not batch.connection.ledger.workers(model):
        echo_err(f"no worker serves {model!r} now; start one with `latentfarm worker` or `latentfarm up`")
