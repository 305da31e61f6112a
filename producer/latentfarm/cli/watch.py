"""``watch``: the progress of batches until they end."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from latentfarm.batch_status import BatchStatus
from latentfarm.cli.output import echo_err
from latentfarm.cli.progress import make_display
from latentfarm.cli.shared import statuses_of
from latentfarm.cli.status_text import format_truncations
from latentfarm.cli.waiting import WaitWarnings
from latentfarm.farm import Farm

_REFRESH_S = 1.0


def watch(
    batches: Annotated[
        list[str] | None,
        typer.Argument(metavar="[BATCH]...", help="Names of batches [default: all that run]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per change")] = False,
) -> None:
    """Show the progress of batches every second, until all have ended or Ctrl-C. Warnings report why jobs wait.

    The exit code is 0 regardless of the jobs; that of `wait` reports failed and cancelled ones.

    Example: `latentfarm watch cats`
    """
    farm = Farm.from_env()
    warn = WaitWarnings(farm.ledger)
    named = [farm.batch(name).name for name in dict.fromkeys(batches or [])]
    shown: list[BatchStatus] = []
    ended: set[str] = set()
    try:
        with make_display(as_json=as_json) as display:
            while True:
                shown = statuses_of(farm, named) if named else _running(farm, shown, ended)
                display(shown, warn(shown))
                if all(each.is_final for each in shown):
                    break
                time.sleep(_REFRESH_S)
    except KeyboardInterrupt:
        # the usual end of this command, so no message
        raise typer.Exit(130) from None
    for each in shown:
        if each.truncated:
            echo_err(f"{each.batch}: {format_truncations(each)}")
    if not shown:
        echo_err("no batch is running; `latentfarm status` lists those that have ended")


def _running(farm: Farm, shown: list[BatchStatus], ended: set[str]) -> list[BatchStatus]:
    """Return the batches that run, and those shown before. Other batches that have ended are added to ``ended``."""
    kept = {each.batch for each in shown}
    found = statuses_of(farm, [name for name in farm.ledger.batches() if name not in ended])
    # a farm may have thousands of ended batches: each is read once
    ended.update(each.batch for each in found if each.is_final and each.batch not in kept)
    return [each for each in found if each.batch not in ended]
