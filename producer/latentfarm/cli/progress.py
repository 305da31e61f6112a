"""The progress of commands: a bar or a table on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from latentfarm.batch_status import BatchStatus
from latentfarm.cli.output import echo_err
from latentfarm.cli.status_text import format_eta, format_failures, format_progress, format_rate

_LINE_INTERVAL_S = 5.0
_REDRAW_INTERVAL_S = 0.1
_BAR_CHARACTERS = 24


class _Bar:
    """A bar on stderr if that is a terminal, else nothing."""

    def __init__(self, description: str, total: int | None) -> None:
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}", markup=False))
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(description, total=total, facts="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class BatchProgress(_Bar):
    """The progress of one batch, with its images per second and ETA. Call it with each status."""

    def __init__(self) -> None:
        super().__init__("rendering", total=None)
        self._last_line = 0.0

    def __call__(self, status: BatchStatus) -> None:
        """Show this status."""
        if self._bar is not None:
            facts = format_progress(status)
            self._bar.update(self._task, completed=status.ended, total=status.total, facts=facts)
            return
        now = time.monotonic()
        if status.is_final or now - self._last_line >= _LINE_INTERVAL_S:
            self._last_line = now
            echo_err(f"{status.batch}: {format_progress(status)}")


class CountProgress(_Bar):
    """The progress of a command that does one thing ``total`` times."""

    def __init__(self, description: str, total: int) -> None:
        super().__init__(description, total)
        self._description = description
        self._total = total
        self._shown_at = time.monotonic()

    def show(self, done: int, *facts: str) -> None:
        """Show the count and further facts. Calls that come too soon after the last one are ignored."""
        now = time.monotonic()
        interval_s = _REDRAW_INTERVAL_S if self._bar else _LINE_INTERVAL_S
        if not (self._bar and done == self._total) and now - self._shown_at < interval_s:
            return
        self._shown_at = now
        text = "  ".join((f"{done}/{self._total}", *facts))
        if self._bar is not None:
            self._bar.update(self._task, completed=done, facts=text)
        else:
            echo_err(f"{self._description}: {text}")


class Display(Protocol):
    """A display of several batches, for `watch`: a context manager, called about every second."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __call__(self, statuses: Sequence[BatchStatus], warnings: Mapping[str, Sequence[str]]) -> None:
        """Show these statuses; warnings are by batch."""


def make_display(*, as_json: bool) -> Display:
    """Return a live table if stdout is a terminal, else a display that prints a line for each change."""
    console = Console()
    if as_json:
        return _JsonLines()
    return _LiveTable(console) if console.is_terminal else _Lines()


class _LiveTable:
    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, statuses: Sequence[BatchStatus], warnings: Mapping[str, Sequence[str]]) -> None:
        del warnings  # they are printed above the table
        self._live.update(_table(statuses), refresh=True)


class _Lines:
    """Prints a line for each batch that changed, at most one in ``interval_s`` seconds until the batch is over."""

    interval_s = _LINE_INTERVAL_S

    def __init__(self) -> None:
        self._printed: dict[str, tuple[BatchStatus, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, statuses: Sequence[BatchStatus], warnings: Mapping[str, Sequence[str]]) -> None:
        for status in statuses:
            now = time.monotonic()
            printed, at = self._printed.get(status.batch, (None, 0.0))
            if _same(status, printed) or (printed is not None and not status.is_final and now - at < self.interval_s):
                continue
            self._printed[status.batch] = (status, now)
            self._print(status, warnings.get(status.batch, ()))

    def _print(self, status: BatchStatus, warnings: Sequence[str]) -> None:
        del warnings  # stderr has them
        typer.echo(f"{status.batch}: {status.state}  {format_progress(status)}")


class _JsonLines(_Lines):
    """Prints a JSON object for each batch that changed, at once."""

    interval_s = 0.0

    def _print(self, status: BatchStatus, warnings: Sequence[str]) -> None:
        typer.echo(json.dumps({**status.model_dump(mode="json"), "warnings": list(warnings)}, ensure_ascii=False))


def _same(status: BatchStatus, printed: BatchStatus | None) -> bool:
    # the rate and the ETA change without any change of the batch
    ignored = {"images_per_s", "eta_s"}
    return printed is not None and status.model_dump(exclude=ignored) == printed.model_dump(exclude=ignored)


def _table(statuses: Sequence[BatchStatus]) -> Table:
    table = Table("batch", "state", "", "done", "images/s", "ETA", "failed", "", box=None, padding=(0, 2, 0, 0))
    for status in statuses:
        bar = ProgressBar(total=max(status.total, 1), completed=status.ended, width=_BAR_CHARACTERS)
        count = f"{status.done}/{status.total}"
        counts = {"drafted": status.drafted, "cancelled": status.cancelled}
        remark = ", ".join(f"{jobs} {word}" for word, jobs in counts.items() if jobs) or status.paused
        texts = (count, format_rate(status), format_eta(status), format_failures(status), remark)
        # names and reasons are user input: Text keeps rich from reading markup in them
        table.add_row(Text(status.batch), status.state, bar, *(Text(text) for text in texts))
    return table
