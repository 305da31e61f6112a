"""``status``, ``jobs`` and ``job``: how far it is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer

from latentfarm.batch import Batch, BatchStatus, JobStatus
from latentfarm.batch_state import describe_pause
from latentfarm.cli import options
from latentfarm.cli.options import print_columns, print_json
from latentfarm.cli.progress import eta, failures, rate, truncations
from latentfarm.cli.workers import as_data
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.job import JobState, parse_job_name
from latentfarm.ledger.webhook_outbox import WebhookOutbox

_COLUMNS = ("batch", "model", "state", "priority", "total", "pending", "leased", "done", "failed", "cancelled")
#: failed jobs named under each error code
_NAMED_JOBS = 20
#: different messages of one code that are counted; beyond them only those known already are
_COUNTED_MESSAGES = 1_000


def status(
    batch: Annotated[str | None, typer.Argument(metavar="[BATCH]", help="One batch; all of them if left out.")] = None,
    as_json: options.Json = False,
) -> None:
    """Say how far a batch is, or all of them, as `list` does; with --json also what the workers of its model do.

    Example: `latentfarm status cats --json`
    """
    farm = Farm.from_env()
    if batch is None:
        found = statuses_of(farm)
        if as_json:
            print_json([with_workers(farm, each) for each in found])
        else:
            print_statuses(found)
        return
    one = farm.batch(batch).status()
    if as_json:
        print_json(with_workers(farm, one))
    else:
        print_statuses([one])
        _print_troubles(farm, one)


def with_workers(farm: Farm, found: BatchStatus) -> dict[str, Any]:
    """Return a batch's status and the workers of its model, who may work for other batches too."""
    return {**found.model_dump(), "workers": [as_data(worker) for worker in farm.workers(found.model)]}


def statuses_of(farm: Farm, names: Iterable[str] | None = None) -> list[BatchStatus]:
    """Return the status of these batches, else of all, oldest first; without those that are deleted meanwhile."""
    found = []
    for name in farm.ledger.batches() if names is None else names:
        try:
            found.append(Batch(farm, name).status())
        except InputError:
            continue
    return found


def print_statuses(statuses: Sequence[BatchStatus]) -> None:
    """Print a table, a line a batch; nothing of none."""
    if not statuses:
        return
    rows: list[tuple[str, ...]] = [(*_COLUMNS, "images/s", "ETA")]
    rows += [(*(str(getattr(each, name)) for name in _COLUMNS), rate(each), eta(each)) for each in statuses]
    print_columns(rows)


def _print_troubles(farm: Farm, found: BatchStatus) -> None:
    if found.paused_by:
        typer.echo(f"paused   {describe_pause(found.paused_by, found.paused)}")
    if found.failed:
        typer.echo(f"errors   {failures(found)}")
    if found.truncated:
        typer.echo(f"prompts  {truncations(found)}")
    if found.webhook:
        problem = WebhookOutbox(farm.ledger.redis, farm.ledger.where).problem(found.batch)
        typer.echo(f"webhook  {found.webhook}" + (f": {problem}" if problem else ""))


def jobs(
    batch: options.BatchName,
    state: Annotated[
        str | None, typer.Option(help=f"Only jobs in this state: {', '.join(s.word for s in JobState)}.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the jobs of a batch, a line each (with --json a JSON object a line); failed ones by error code.

    Example: `latentfarm jobs cats --state failed`
    """
    wanted = _state(state)
    found = Farm.from_env().batch(batch).jobs(state=wanted)
    if wanted is JobState.FAILED and not as_json:
        for line in grouped(found):
            typer.echo(line)
        return
    for each in found:
        if as_json:
            typer.echo(json.dumps(each.model_dump(), ensure_ascii=False))
        else:
            error = f"  {each.error['code']}: {each.error['message']}" if each.error else ""
            typer.echo(f"{each.id}  {each.state}{error}")


class _Group:
    """The failed jobs of one code: how many, the first of them, and what they say."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[tuple[str, str]] = []
        self.messages: Counter[str] = Counter()

    def add(self, name: str, message: str) -> None:
        self.count += 1
        if len(self.first) < _NAMED_JOBS:
            self.first.append((name, message))
        if message in self.messages or len(self.messages) < _COUNTED_MESSAGES:
            self.messages[message] += 1

    def lines(self, code: str) -> Iterator[str]:
        [(usual, times)] = self.messages.most_common(1)
        often = "" if times == self.count else f", {times} of them"
        yield f"{code}  {self.count} job{'' if self.count == 1 else 's'}{often}: {usual}"
        for name, message in self.first:
            yield f"  {name}" + ("" if message == usual else f"  {message}")
        if self.count > len(self.first):
            yield f"  ... and {self.count - len(self.first)} more"


def grouped(failed: Iterable[JobStatus]) -> Iterator[str]:
    """Yield lines that tell failed jobs by error code, the most frequent first, however many they are.

    A code's heading has its count and its most frequent message. The first 20 jobs follow, with their own message
    where it is another.
    """
    groups: dict[str, _Group] = {}
    for each in failed:
        error = each.error or {"code": "unknown", "message": ""}
        groups.setdefault(error["code"], _Group()).add(each.id, error["message"])
    for code, group in sorted(groups.items(), key=lambda item: (-item[1].count, item[0])):
        yield from group.lines(code)


def _state(word: str | None) -> JobState | None:
    if word is None:
        return None
    known = {state.word: state for state in JobState}
    if word not in known:
        raise InputError(f"--state {word!r}: write one of {', '.join(known)}")
    return known[word]


def job(
    name: Annotated[str, typer.Argument(metavar="BATCH/INDEX", help="The job's id.")],
    as_json: options.Json = False,
) -> None:
    """Show one job: its state, and what its receipt or its failure says.

    Example: `latentfarm job cats/17 --json`
    """
    batch, index = parse_job_name(name)
    found = Farm.from_env().batch(batch).job(index)
    if as_json:
        print_json(found.model_dump())
    else:
        _print_job(found)


def _print_job(found: JobStatus) -> None:
    for field, value in found.model_dump(exclude_none=True).items():
        text = value
        if field == "error":
            text = f"{value['code']}: {value['message']}"
        elif field == "timings":
            text = ", ".join(f"{stage} {seconds:.3f} s" for stage, seconds in value.items())
        typer.echo(f"{field:<9} {text}")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(status)
    app.command()(jobs)
    app.command()(job)
