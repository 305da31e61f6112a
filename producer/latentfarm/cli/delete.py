"""``delete``: remove batches with everything that belongs to them."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from latentfarm.batch import Batch
from latentfarm.cli.confirmation import require_confirmation, require_terminal
from latentfarm.cli.output import echo_err, plural
from latentfarm.farm import Farm
from latentfarm.names import check_batch_name

_PROGRESS_INTERVAL_S = 5.0


def delete(
    batches: Annotated[list[str], typer.Argument(metavar="BATCH...", help="Names of batches")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not prompt for confirmation")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per batch")] = False,
) -> None:
    """Delete batches with their manifests, images and results. Running jobs are cancelled first.

    Example: `latentfarm delete cats --yes`
    """
    farm = Farm.from_env()
    names = [check_batch_name(name) for name in dict.fromkeys(batches)]
    known = {summary.name for summary in farm.ledger.batch_summaries(names)}
    if not yes:
        _confirm([farm.batch(name) for name in names if name in known])
    for name in names:
        removed = _delete(farm.batch(name)) if name in known else 0
        if as_json:
            typer.echo(json.dumps({"batch": name, "objects": removed}))
        elif name in known:
            typer.echo(f"{name} is deleted: {plural(removed, 'object')}")
        else:
            typer.echo(f"{name} does not exist; nothing to delete")


def _confirm(batches: list[Batch]) -> None:
    """Return if the user confirms every deletion; none has begun then."""
    if batches:
        require_terminal("delete")
    for batch in batches:
        images = plural(batch.status().done, "image")
        question = f"Delete {images} and everything else of batch {batch.name!r}?"
        require_confirmation(question, "nothing was deleted")


def _delete(batch: Batch) -> int:
    printed_at = time.monotonic()

    def progress(removed: int) -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at >= _PROGRESS_INTERVAL_S:
            printed_at = time.monotonic()
            echo_err(f"{batch.name}: {removed:,} objects deleted")

    return batch.delete(progress=progress)
