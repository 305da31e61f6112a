"""``workers``: the live workers with their throughput."""

from __future__ import annotations

from typing import Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.output import echo_err, format_duration, print_columns, print_json
from latentfarm.cli.shared import worker_data
from latentfarm.farm import Farm
from latentfarm.ledger import WorkerRecord
from latentfarm.names import check_model_alias

_COLUMNS = ("worker", "model", "device", "dtype", "slots", "up", "images", "images/s", "busy")


def workers(
    model: Annotated[
        str | None, typer.Option("--model", metavar="ALIAS", help="Only workers of this model [default: all]")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the live workers with their throughput over the last two minutes.

    `busy` is the share of the time that the engine spent in denoising steps; a worker that is `draining` takes no more
    jobs. `up` and `images` count from the first start; a restart by the supervisor does not reset them.

    Example: `latentfarm workers`
    """
    found = Farm.from_env().workers(None if model is None else check_model_alias(model))
    if as_json:
        print_json([worker_data(each) for each in found])
    elif found:
        print_columns([_COLUMNS, *(_row(each) for each in found)])
    else:
        which = f"serves {model!r}" if model else "is running"
        echo_err(f"no worker {which} now; start one with `latentfarm worker`")


def _row(worker: WorkerRecord) -> tuple[str, ...]:
    return (
        worker.name,
        worker.model,
        f"{worker.device} ({worker.device_name})",
        worker.dtype,
        str(worker.slots),
        format_duration((worker.seen_ms - worker.since_ms) / 1000),
        str(worker.images),
        "-" if worker.images_per_s is None else f"{worker.images_per_s:.2f}",
        "draining" if worker.draining else "-" if worker.busy_share is None else f"{worker.busy_share:.0%}",
    )
