"""``list``, ``watch`` and what a user does to a batch under way: each lasts, and doing it twice changes nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Annotated

import typer

from latentfarm.batch import Batch, BatchStatus
from latentfarm.batch_state import describe_pause
from latentfarm.cli import options
from latentfarm.cli.options import print_json
from latentfarm.cli.progress import echo_err, failures, make_screen, truncations
from latentfarm.cli.status import print_statuses, statuses_of
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.job import check_batch_name

_REFRESH_S = 1.0
_DELETE_NOTE_EVERY_S = 5.0
_STATES = ("opening", "open", "paused", "complete", "cancelled", "deleting")

BatchNames = Annotated[list[str], typer.Argument(metavar="BATCH...", help="Names of batches.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print a JSON object a line: the status of each batch.")]


def pause(batches: BatchNames, as_json: JsonLines = False) -> None:
    """Start no more jobs of these batches until `resume`; what is being rendered may end.

    Example: `latentfarm pause cats`
    """

    def act(batch: Batch) -> str:
        before = batch.status()
        after = batch.pause()
        return f"is paused already: {describe_pause(before.paused_by, before.paused)}" if before.paused_by else f"is {after.state}"

    _each(batches, act, as_json=as_json)


def resume(batches: BatchNames, as_json: JsonLines = False) -> None:
    """Go on with these batches after a pause, a spent failure budget or a canary.

    Example: `latentfarm resume cats`
    """

    def act(batch: Batch) -> str:
        record = batch.connection.ledger.batch(batch.name)
        after = batch.resume()
        return f"goes on: {after.state}" if record.paused_by or record.canary else f"is {after.state} already"

    _each(batches, act, as_json=as_json)


def cancel(batches: BatchNames, as_json: JsonLines = False) -> None:
    """End these batches for good: running jobs stop at their next denoising step, finished pictures stay.

    Example: `latentfarm cancel cats dogs`
    """

    def act(batch: Batch) -> str:
        before = batch.status()
        after = batch.cancel()
        if before.over:
            return f"is {before.state} already"
        return f"is {after.state}: {after.done} done, {after.failed} failed, {after.cancelled} cancelled"

    _each(batches, act, as_json=as_json)


def retry(
    batch: options.BatchName,
    code: Annotated[
        str | None, typer.Option(metavar="CODE", help="Only jobs that failed with this error code.")
    ] = None,
    as_json: JsonLines = False,
) -> None:
    """Run the failed jobs of a batch again, as if never tried.

    Example: `latentfarm retry cats --code nan`
    """

    def act(found: Batch) -> str:
        again = found.retry(code=code)
        after = found.status()
        if again:
            jobs = f"{again} {_plural(again, 'job')}"
            return f"will run {jobs} again after `resume`: {describe_pause(after.paused_by, after.paused)}" if after.paused_by else f"runs {jobs} again"
        left = failures(after)
        which = f" with code {code!r}" if code else ""
        return f"has no failed job{which} to run again" + (f"; it has {left}" if left else "")

    _each([batch], act, as_json=as_json)


def priority(
    batch: options.BatchName,
    number: Annotated[
        int, typer.Argument(metavar="N", min=-1000, max=1000, help="Batches of a higher priority run first.")
    ],
    as_json: JsonLines = False,
) -> None:
    """Change a batch's priority; the jobs that are leased next follow it.

    Example: `latentfarm priority cats 10`
    """

    def act(found: Batch) -> str:
        before = found.status().priority
        found.set_priority(number)
        return f"has priority {number}" + (" already" if before == number else "")

    _each([batch], act, as_json=as_json)


def delete(
    batches: BatchNames,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line: what was removed.")] = False,
) -> None:
    """Remove batches with their manifests, pictures and results; what runs is cancelled first.

    Example: `latentfarm delete cats --yes`
    """
    farm = Farm.from_env()
    names = [check_batch_name(name) for name in dict.fromkeys(batches)]
    known = set(farm.ledger.batches())
    if not yes:
        _ask([farm.batch(name) for name in names if name in known])
    for name in names:
        removed = _delete(farm.batch(name)) if name in known else 0
        if as_json:
            typer.echo(json.dumps({"batch": name, "objects": removed}))
        elif name in known:
            typer.echo(f"{name} is deleted: {removed} {_plural(removed, 'object')}")
        else:
            typer.echo(f"{name} is not there; nothing to delete")


def _ask(batches: list[Batch]) -> None:
    """Return if the user agrees to every deletion, before the first of them."""
    if batches and not sys.stdin.isatty():
        raise InputError("delete asks before it removes anything, and nobody is there to answer; write --yes")
    for batch in batches:
        done = batch.status().done
        question = f"Delete {done} {_plural(done, 'picture')} and everything else of batch {batch.name!r}?"
        if not typer.confirm(question, err=True):
            echo_err("nothing was deleted")
            raise typer.Exit(1)


def _delete(batch: Batch) -> int:
    told = time.monotonic()

    def progress(removed: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _DELETE_NOTE_EVERY_S:
            told = time.monotonic()
            echo_err(f"{batch.name}: {removed} objects removed")

    return batch.delete(progress=progress)


def list_batches(
    state: Annotated[
        str | None, typer.Option(metavar="STATE", help=f"Only batches in this state: {', '.join(_STATES)}.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List all batches, the newest last.

    Example: `latentfarm list --state paused`
    """
    if state is not None and state not in _STATES:
        raise InputError(f"--state {state!r}: write one of {', '.join(_STATES)}")
    found = [each for each in statuses_of(Farm.from_env()) if state in {None, each.state}]
    if as_json:
        print_json([each.model_dump() for each in found])
    else:
        print_statuses(found)


def watch(
    batches: Annotated[
        list[str] | None, typer.Argument(metavar="[BATCH]...", help="All that are not over if left out.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a line whenever something changed.")
    ] = False,
) -> None:
    """Show how far batches are, every second, until all of them are over or Ctrl-C.

    Example: `latentfarm watch cats`
    """
    farm = Farm.from_env()
    named = [farm.batch(name).name for name in dict.fromkeys(batches or [])]
    shown: list[BatchStatus] = []
    past: set[str] = set()
    try:
        with make_screen(as_json=as_json) as screen:
            while True:
                shown = statuses_of(farm, named) if named else _under_way(farm, shown, past)
                screen(shown)
                if all(each.over for each in shown):
                    break
                time.sleep(_REFRESH_S)
    except KeyboardInterrupt:
        # the usual way to leave: no trace of it on the screen
        raise typer.Exit(130) from None
    for each in shown:
        if each.truncated:
            echo_err(f"{each.batch}: {truncations(each)}")
    if not shown:
        echo_err("no batch is under way; `latentfarm list` shows those that were")


def _under_way(farm: Farm, shown: list[BatchStatus], past: set[str]) -> list[BatchStatus]:
    """Return the batches that are not over, and those that were shown before; ``past`` learns what is neither."""
    stay = {each.batch for each in shown}
    found = statuses_of(farm, [name for name in farm.ledger.batches() if name not in past])
    # a farm may have thousands that were over long ago: each is looked at once
    past.update(each.batch for each in found if each.over and each.batch not in stay)
    return [each for each in found if each.batch not in past]


def _each(names: list[str], act: Callable[[Batch], str], *, as_json: bool) -> None:
    """Do one thing to each batch and say what became of it; an unknown name stops it before the first."""
    farm = Farm.from_env()
    for batch in [farm.batch(name) for name in dict.fromkeys(names)]:
        said = act(batch)
        typer.echo(json.dumps(batch.status().model_dump(), ensure_ascii=False) if as_json else f"{batch.name} {said}")


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("list")(list_batches)
    app.command()(watch)
    app.command()(pause)
    app.command()(resume)
    app.command()(cancel)
    app.command()(retry)
    # else a negative priority would be taken for an option
    app.command(context_settings={"ignore_unknown_options": True})(priority)
    app.command()(delete)
