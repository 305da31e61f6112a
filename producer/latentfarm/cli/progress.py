"""How far a batch is, as it goes on: a bar or a table on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from latentfarm.batch import BatchStatus
from latentfarm.batch_state import describe_pause
from latentfarm.job import MAX_TOKENS

_LINE_EVERY_S = 5.0
_BAR_CHARACTERS = 24


class _Bar:
    """A bar on stderr where that is a terminal, nothing elsewhere; a context manager."""

    def __init__(self, doing: str, total: int | None) -> None:
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}", markup=False))
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(doing, total=total, facts="")

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
    """Shows done/total, images/s and the time left of a batch; a context manager, called with each status."""

    def __init__(self) -> None:
        super().__init__("rendering", total=None)
        self._last_line = 0.0

    def __call__(self, status: BatchStatus) -> None:
        """Show this status."""
        if self._bar is not None:
            self._bar.update(self._task, completed=status.ended, total=status.total, facts=facts(status))
            return
        now = time.monotonic()
        if status.over or now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            echo_err(f"{status.batch}: {facts(status)}")


class CountProgress(_Bar):
    """Shows how many of ``total`` are done: a bar on a terminal, a line every few seconds elsewhere."""

    _REDRAW_S = 0.1

    def __init__(self, doing: str, total: int) -> None:
        super().__init__(doing, total)
        self._doing = doing
        self._total = total
        self._told = time.monotonic()

    def show(self, done: int, *more: str) -> None:
        """Show how far it is, and what else there is to say."""
        now = time.monotonic()
        last = done == self._total
        if not (last and self._bar) and now - self._told < (self._REDRAW_S if self._bar else _LINE_EVERY_S):
            return
        self._told = now
        facts = "  ".join((f"{done}/{self._total}", *more))
        if self._bar is not None:
            self._bar.update(self._task, completed=done, facts=facts)
        else:
            echo_err(f"{self._doing}: {facts}")


class Screen(Protocol):
    """What `watch` shows its batches on; a context manager, called about every second."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __call__(self, statuses: Sequence[BatchStatus]) -> None:
        """Show how far they are now."""


def make_screen(*, as_json: bool) -> Screen:
    """Return a table that is redrawn where stdout is a terminal, else lines as something changes."""
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

    def __call__(self, statuses: Sequence[BatchStatus]) -> None:
        self._live.update(_table(statuses), refresh=True)


class _Lines:
    """A line of a batch that has changed, at most every few seconds unless it is over."""

    every_s = _LINE_EVERY_S

    def __init__(self) -> None:
        self._told: dict[str, tuple[BatchStatus, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, statuses: Sequence[BatchStatus]) -> None:
        for status in statuses:
            now = time.monotonic()
            told, at = self._told.get(status.batch, (None, 0.0))
            if _same(status, told) or (told is not None and not status.over and now - at < self.every_s):
                continue
            self._told[status.batch] = (status, now)
            self._say(status)

    def _say(self, status: BatchStatus) -> None:
        typer.echo(f"{status.batch}: {status.state}  {facts(status)}")


class _JsonLines(_Lines):
    """A JSON object of a batch that has changed, at once."""

    every_s = 0.0

    def _say(self, status: BatchStatus) -> None:
        typer.echo(json.dumps(status.model_dump(), ensure_ascii=False))


def _same(status: BatchStatus, told: BatchStatus | None) -> bool:
    # a rate and an ETA change by the mere passing of time
    dull = {"images_per_s", "eta_s"}
    return told is not None and status.model_dump(exclude=dull) == told.model_dump(exclude=dull)


def _table(statuses: Sequence[BatchStatus]) -> Table:
    table = Table("batch", "state", "", "ended", "images/s", "ETA", "failed", "", box=None, padding=(0, 2, 0, 0))
    for status in statuses:
        bar = ProgressBar(total=max(status.total, 1), completed=status.ended, width=_BAR_CHARACTERS)
        texts = (f"{status.ended}/{status.total}", rate(status), eta(status), failures(status), describe_pause(status.paused_by, status.paused))
        # names and reasons come from users: no markup in them
        table.add_row(Text(status.batch), status.state, bar, *(Text(text) for text in texts))
    return table


def facts(status: BatchStatus) -> str:
    """Return what there is to say of a batch's progress, in one line."""
    found = [f"{status.ended}/{status.total}"]
    if status.failed:
        found.append(failures(status))
    if status.images_per_s is not None:
        found.append(f"{status.images_per_s:.2f} images/s")
    if (left := eta(status)) != "-":
        found.append(f"ETA {left}")
    if status.paused_by:
        found.append(f"paused: {describe_pause(status.paused_by, status.paused)}")
    return "  ".join(found)


def failures(status: BatchStatus) -> str:
    """Return the failed jobs with their codes, the most frequent first: ``7 failed (nan 5, render 2)``."""
    if not status.failed:
        return ""
    codes = sorted(status.errors.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{code} {count}" for code, count in codes)
    return f"{status.failed} failed" + (f" ({listed})" if listed else "")


def truncations(status: BatchStatus) -> str:
    """Return how many pictures lack the end of their prompt, and the cure; empty of none."""
    if not status.truncated:
        return ""
    prompts = "1 prompt was" if status.truncated == 1 else f"{status.truncated} prompts were"
    end = "its end" if status.truncated == 1 else "their end"
    return f"{prompts} longer than {MAX_TOKENS} tokens and lost {end}; --prompt-syntax a1111 encodes them whole"


def rate(status: BatchStatus) -> str:
    """Return the images a second, or a dash."""
    return "-" if status.images_per_s is None else f"{status.images_per_s:.2f}"


def eta(status: BatchStatus) -> str:
    """Return the time left, or a dash: nobody knows for how long a pause will last."""
    return "-" if status.eta_s is None or status.over or status.paused_by else duration(status.eta_s)


def duration(seconds: float) -> str:
    """Return a time as people read it: 48 s, 3 min 20 s, 5 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def echo_err(text: str) -> None:
    """Say something on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
