"""``recover``: rebuild the ledger from the bucket."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from latentfarm.batch_state import ACTIVE
from latentfarm.cli.output import echo_err
from latentfarm.errors import NotFoundError
from latentfarm.farm import Farm
from latentfarm.ledger.server_check import check_server
from latentfarm.names import check_batch_name
from latentfarm.recovery.recover import RecoveryReport, list_batches, recover_batch


def recover(
    batches: Annotated[
        list[str] | None, typer.Argument(metavar="[BATCH]...", help="Names of batches [default: all in the bucket]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the changes without making them")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per batch")] = False,
) -> None:
    """Rebuild the ledger from the bucket, after Redis lost its data or restored an old snapshot.

    Manifests, results and images prove which jobs are done; these are not rendered again. Previews and checkpoints
    prove which are drafted, also those that were to be finished: run `latentfarm finish` again. The leases of these
    batches end: a worker that renders such a job now loses it.

    Example: `latentfarm recover --dry-run`
    """
    farm = Farm.from_env()
    # an empty bucket would hide a Redis that cannot be used
    if dry_run:
        farm.ledger.batches()
    else:
        check_server(farm.ledger)
    changed = 0
    names = [check_batch_name(name) for name in batches] if batches else list(list_batches(farm.bucket))
    for name in names:
        try:
            found = recover_batch(farm.ledger, farm.bucket, name, dry_run=dry_run)
        except NotFoundError as error:
            if batches:
                raise
            # what a submission or a deletion leaves that ended midway
            echo_err(f"skipped: {error}")
            continue
        changed += found.changed
        typer.echo(json.dumps(found.model_dump(), ensure_ascii=False) if as_json else _text(found))
        if found.state in ACTIVE and not dry_run:
            farm.connection.ring(farm.ledger.batch(name).model)
    verb = "would change" if dry_run else "changed"
    echo_err(f"{len(names)} {'batch' if len(names) == 1 else 'batches'} checked, {changed} {verb}")


def _text(found: RecoveryReport) -> str:
    if not found.changed:
        return f"  {found.batch}  unchanged: {found.state}, {found.done} of {found.total} done"
    ends = f"{found.done} of {found.total} done, {found.failed} failed"
    ends += f", {found.drafted} drafted" if found.drafted else ""
    lines = [f"~ {found.batch}  {found.was} -> {found.state}: {ends}"]
    for change, count in sorted(found.changes.items()):
        named = ", ".join(str(index) for index in found.examples[change])
        lines.append(f"    {change:<20} {count:>9}  ({named}{', ...' if count > len(found.examples[change]) else ''})")
    lines += [f"    not an image: {key}" for key in found.broken]
    return "\n".join(lines)
