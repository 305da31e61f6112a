"""``gc``: delete the orphaned images of a batch, or the input images that no batch names."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated

import typer

from latentfarm.cli.output import echo_err, plural
from latentfarm.cli.progress import CountProgress
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.inputs.collection import collect_inputs
from latentfarm.inputs.store import GRACE_S
from latentfarm.limits import PART_JOBS
from latentfarm.storage.orphans import collect_orphans

_PROGRESS_INTERVAL_S = 5.0


def gc(
    batch: Annotated[str | None, typer.Argument(metavar="BATCH", help="Name of the batch")] = None,
    inputs: Annotated[bool, typer.Option("--inputs", help="Delete input images that no batch names, instead")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="HOURS", help="Keep inputs that are not as old")
    ] = GRACE_S / 3600,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Delete the images that lost leases left in the bucket of a batch, or unused inputs.

    An image is orphaned if its job has ended with another lease's image or with none; so is the checkpoint of an image,
    or the preview of a draft, if its job has ended otherwise. Workers collect such objects when a batch ends, so this
    command is only needed earlier. Results that newer ones have replaced are deleted too. It is safe while the batch
    runs.

    With --inputs, the input images that no batch of the bucket names are deleted. A submission stores an input before
    the rows that name it, so keep --older-than above the time that this takes.

    Example: `latentfarm gc cats`
    """
    if inputs == (batch is not None):
        raise InputError("gc needs either BATCH or --inputs; write one of them")
    farm = Farm.from_env()
    if inputs:
        deleted = collect_inputs(farm.bucket, grace_s=older_than * 3600, progress=_show_parts())
        typer.echo(json.dumps({"inputs": deleted}) if as_json else f"{plural(deleted, 'input')} deleted")
        return
    name = farm.batch(str(batch)).name
    parts = -(-farm.ledger.batch(name).total // PART_JOBS)
    with CountProgress("checking parts", parts) as progress:
        deleted = collect_orphans(farm.ledger, farm.bucket, name, progress=lambda done, _: progress.show(done))
    typer.echo(json.dumps({"batch": name, "objects": deleted}) if as_json else f"{plural(deleted, 'object')} deleted")


def _show_parts() -> Callable[[int], None]:
    """Return what prints the number of parts every few seconds."""
    printed_at = time.monotonic()

    def show(parts: int) -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at >= _PROGRESS_INTERVAL_S:
            printed_at = time.monotonic()
            echo_err(f"{parts:,} parts of manifests read")

    return show
