"""``recover``: the ledger rebuilt from the bucket."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from latentfarm.cli import options
from latentfarm.cli.progress import echo_err
from latentfarm.farm import Farm
from latentfarm.job import check_batch_name
from latentfarm.recovery.recover import Recovered, batches_in, recover_batch


def recover(
    batches: Annotated[
        list[str] | None, typer.Argument(metavar="[BATCH...]", help="Names of batches; all in the bucket if left out.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Rebuild the ledger from the bucket, after Redis was emptied or came back with an old snapshot.

    Manifests, results and images tell which jobs are done; none of those is rendered again. Whoever renders a job of
    such a batch at this moment loses it.

    Example: `latentfarm recover --dry-run`
    """
    farm = Farm.from_env()
    changed = 0
    names = [check_batch_name(name) for name in batches] if batches else list(batches_in(farm.bucket))
    for name in names:
        found = recover_batch(farm.ledger, farm.bucket, name, dry_run=dry_run)
        changed += found.changed
        typer.echo(json.dumps(found.model_dump(), ensure_ascii=False) if as_json else _text(found))
        if found.state in {"open", "opening"} and not dry_run:
            farm.connection.ring(farm.ledger.batch(name).model)
    verb = "would change" if dry_run else "changed"
    echo_err(f"{len(names)} batches looked at, {changed} {verb}")


def _text(found: Recovered) -> str:
    if not found.changed:
        return f"  {found.batch}  as it was: {found.state}, {found.done} of {found.total} done"
    lines = [
        f"~ {found.batch}  {found.was} -> {found.state}: {found.done} of {found.total} done, {found.failed} failed"
    ]
    for change, count in sorted(found.changes.items()):
        named = ", ".join(str(index) for index in found.examples[change])
        lines.append(f"    {change:<20} {count:>9}  ({named}{', ...' if count > len(found.examples[change]) else ''})")
    lines += [f"    not an image: {key}" for key in found.broken]
    return "\n".join(lines)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(recover)
