"""``gc``: delete the orphaned images of a batch."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.output import plural
from latentfarm.cli.progress import CountProgress
from latentfarm.farm import Farm
from latentfarm.limits import PART_JOBS
from latentfarm.storage.orphans import collect_orphans


def gc(
    batch: options.BatchName,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Delete the images that lost leases left in the bucket of a batch.

    An image is orphaned if its job has ended with another lease's image or with none. Workers collect such images
    when a batch ends, so this command is only needed earlier. Results that newer ones have replaced are deleted too. It
    is safe while the batch runs.

    Example: `latentfarm gc cats`
    """
    farm = Farm.from_env()
    name = farm.batch(batch).name
    parts = -(-farm.ledger.batch(name).total // PART_JOBS)
    with CountProgress("checking parts", parts) as progress:
        deleted = collect_orphans(farm.ledger, farm.bucket, name, progress=lambda done, _: progress.show(done))
    typer.echo(json.dumps({"batch": name, "objects": deleted}) if as_json else f"{plural(deleted, 'object')} deleted")
