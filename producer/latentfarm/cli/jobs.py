"""``jobs`` and ``job``: the jobs of a batch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

from latentfarm.batch_jobs import JobStatus
from latentfarm.cli import options
from latentfarm.cli.output import plural, print_json
from latentfarm.farm import Farm
from latentfarm.job_state import JobState
from latentfarm.names import parse_job_name

#: failed jobs listed under each error code
_LISTED_JOBS = 20
#: distinct messages counted for each error code, so that memory stays bounded
_COUNTED_MESSAGES = 1_000


def jobs(
    batch: options.BatchName,
    state: Annotated[
        str | None,
        typer.Option(metavar="STATE", help=f"Only jobs in this state: {', '.join(s.word for s in JobState)}"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per job")] = False,
) -> None:
    """List the jobs of a batch, one per line.

    With --state failed they are grouped by error code.

    Example: `latentfarm jobs cats --state failed`
    """
    known = {state.word: state for state in JobState}
    wanted = None if state is None else known[options.require_choice("--state", state, list(known))]
    found = Farm.from_env().batch(batch).jobs(state=wanted)
    if wanted is JobState.FAILED and not as_json:
        for line in group_by_code(found):
            typer.echo(line)
        return
    for each in found:
        if as_json:
            typer.echo(json.dumps(each.model_dump(), ensure_ascii=False))
        else:
            error = f"  {each.error['code']}: {each.error['message']}" if each.error else ""
            typer.echo(f"{each.id}  {each.state}{error}")


class _Group:
    """The failed jobs of one code: their number, the first of them, and their messages."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[tuple[str, str]] = []
        self.messages: Counter[str] = Counter()

    def add(self, name: str, message: str) -> None:
        self.count += 1
        if len(self.first) < _LISTED_JOBS:
            self.first.append((name, message))
        if message in self.messages or len(self.messages) < _COUNTED_MESSAGES:
            self.messages[message] += 1

    def lines(self, code: str) -> Iterator[str]:
        [(usual, times)] = self.messages.most_common(1)
        share = "" if times == self.count else f", {times} of them"
        yield f"{code}  {plural(self.count, 'job')}{share}: {usual}"
        for name, message in self.first:
            yield f"  {name}" + ("" if message == usual else f"  {message}")
        if self.count > len(self.first):
            yield f"  ... and {self.count - len(self.first)} more"


def group_by_code(failed: Iterable[JobStatus]) -> Iterator[str]:
    """Yield the failed jobs as lines grouped by error code, the most frequent code first.

    A group begins with its count and its most frequent message. Its first 20 jobs follow, with their own message if
    that differs.
    """
    groups: dict[str, _Group] = {}
    for each in failed:
        error = each.error or {"code": "unknown", "message": ""}
        groups.setdefault(error["code"], _Group()).add(each.id, error["message"])
    for code, group in sorted(groups.items(), key=lambda item: (-item[1].count, item[0])):
        yield from group.lines(code)


def job(
    name: Annotated[str, typer.Argument(metavar="BATCH/INDEX", help="Id of the job")],
    as_json: options.Json = False,
) -> None:
    """Show one job: its state, its receipt, and its error if it failed.

    Example: `latentfarm job cats/17 --json`
    """
    batch, index = parse_job_name(name)
    found = Farm.from_env().batch(batch).job(index)
    if as_json:
        print_json(found.model_dump())
        return
    for field, value in found.model_dump(exclude_none=True).items():
        text = value
        if field == "error":
            text = f"{value['code']}: {value['message']}"
        elif field == "timings":
            text = ", ".join(f"{stage} {seconds:.3f} s" for stage, seconds in value.items())
        typer.echo(f"{field:<9} {text}")
