"""Warnings of why the jobs of batches wait, on stderr: at once, and seldom again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from latentfarm.batch_status import BatchStatus
from latentfarm.cli.output import echo_err
from latentfarm.ledger import Ledger
from latentfarm.waiting import wait_reasons

#: seconds between two readings of the reasons
_CHECK_S = 5.0
#: seconds until an unchanged warning is repeated; each further time takes twice as long
_REPEAT_S = 120.0
_MAX_BATCHES = 3


def warnings_of(ledger: Ledger, status: BatchStatus) -> list[str]:
    """Return why the jobs of a batch wait, each reason with its cure."""
    return wait_reasons(ledger, [status]).get(status.batch, [])


def echo_warnings(warnings: Mapping[str, Sequence[str]]) -> None:
    """Print warnings by batch; batches with the same warning share a line."""
    batches: dict[str, list[str]] = {}
    for batch, texts in warnings.items():
        for text in texts:
            batches.setdefault(text, []).append(batch)
    for text, names in batches.items():
        more = f" and {len(names) - _MAX_BATCHES} more" if len(names) > _MAX_BATCHES else ""
        echo_err(f"warning: {', '.join(names[:_MAX_BATCHES])}{more}: {text}")


class WaitWarnings:
    """The warnings of a command that waits: they are printed when they change, and repeated seldom.

    Args:
        ledger: the ledger of the batches.
        starting: returns whether the command has started workers, which may not serve yet.
        known: warnings that were printed already.
        clock: seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        starting: Callable[[], bool] = lambda: False,
        known: Mapping[str, Sequence[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._starting = starting
        self._clock = clock
        self._printed = {batch: list(texts) for batch, texts in (known or {}).items()}
        self._current: Mapping[str, Sequence[str]] = self._printed
        self._wait_s = _REPEAT_S
        self._checked_at: float | None = None
        self._printed_at = clock()

    def __call__(self, statuses: Sequence[BatchStatus]) -> Mapping[str, Sequence[str]]:
        """Read why these batches wait, at most every few seconds; print what is new. Return the warnings by batch."""
        now = self._clock()
        if self._checked_at is not None and now - self._checked_at < _CHECK_S:
            return self._current
        self._checked_at = now
        found = wait_reasons(self._ledger, statuses, starting=self._starting())
        self._current = found
        new = {batch: texts for batch, texts in found.items() if texts != self._printed.get(batch)}
        if new:
            self._wait_s = _REPEAT_S
        elif found and now - self._printed_at >= self._wait_s:
            new, self._wait_s = found, 2 * self._wait_s
        if new:
            echo_warnings(new)
            self._printed_at = now
        # a batch that ran meanwhile is warned of again
        self._printed = found
        return found
