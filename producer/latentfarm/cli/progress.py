"""Progress on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from latentfarm.batch import BatchStatus

_LINE_EVERY_S = 5.0


class BatchProgress:
    """Shows done/total, images/s and the time left of a batch; a context manager, called with each status."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"))
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("rendering", total=None, facts="")
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, status: BatchStatus) -> None:
        """Show this status."""
        if self._bar is not None:
            self._bar.update(self._task, completed=status.ended, total=status.total, facts=_facts(status))
            return
        now = time.monotonic()
        if status.complete or now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            sys.stderr.write(f"{status.batch}: {_facts(status)}\n")
            sys.stderr.flush()


def _facts(status: BatchStatus) -> str:
    facts = [f"{status.ended}/{status.total}"]
    if status.failed:
        facts.append(f"{status.failed} failed")
    if status.images_per_s is not None:
        facts.append(f"{status.images_per_s:.2f} images/s")
    if status.eta_s is not None and not status.complete:
        facts.append(f"ETA {duration(status.eta_s)}")
    return "  ".join(facts)


def duration(seconds: float) -> str:
    """Return a time as people read it: 48 s, 3 min 20 s, 5 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def note(text: str) -> None:
    """Say something on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
