"""``workers``: who renders, how fast, and how busy."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from latentfarm.cli import options
from latentfarm.cli.options import print_columns, print_json
from latentfarm.cli.progress import duration, echo_err
from latentfarm.farm import Farm
from latentfarm.ledger import WorkerRecord

_COLUMNS = ("worker", "model", "device", "dtype", "slots", "up", "images", "images/s", "busy")


def workers(
    model: Annotated[
        str | None, typer.Option("--model", metavar="ALIAS", help="Only workers of this model; all if left out.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the workers that are here now, a line each: images a second and busy share over the last two minutes.

    Busy is the share of the time that the engine's steps took. `up` and `images` count from when the worker was first
    seen; being restarted by its supervisor does not end that.

    Example: `latentfarm workers`
    """
    found = Farm.from_env().workers(model)
    if as_json:
        print_json([as_data(each) for each in found])
    elif found:
        print_columns([_COLUMNS, *(_row(each) for each in found)])
    else:
        echo_err(f"no worker {f'serves {model!r}' if model else 'is here'} now; start one with `latentfarm worker`")


def as_data(worker: WorkerRecord) -> dict[str, Any]:
    """Return what ``--json`` prints of a worker."""
    fields = asdict(worker)
    times = {name: fields.pop(f"{name}_ms") for name in ("since", "seen")}
    return {
        "worker": fields.pop("name"),
        **fields,
        **{name: datetime.fromtimestamp(ms / 1000, UTC).isoformat() for name, ms in times.items()},
    }


def _row(worker: WorkerRecord) -> tuple[str, ...]:
    return (
        worker.name,
        worker.model,
        f"{worker.device} ({worker.device_name})",
        worker.dtype,
        str(worker.slots),
        duration((worker.seen_ms - worker.since_ms) / 1000),
        str(worker.images),
        "-" if worker.images_per_s is None else f"{worker.images_per_s:.2f}",
        "-" if worker.busy_share is None else f"{worker.busy_share:.0%}",
    )


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(workers)
