"""Rebuilds a batch in the ledger, part by part. No job of it is leased until the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState
from latentfarm.job_state import JobState
from latentfarm.ledger.ledger import Ledger
from latentfarm.ledger.queries import known_state
from latentfarm.ledger.records import account_of, decode, error_text, receipt_text


class Restoration:
    """One batch that is being rebuilt. Methods raise ``UnavailableError`` if Redis is unavailable.

    If the process dies midway, the batch stays ``recovering`` until it is restored again.
    """

    def __init__(self, ledger: Ledger, batch: str) -> None:
        self._ledger = ledger
        self._batch = batch

    def begin(
        self,
        *,
        total: int,
        fields: Mapping[str, str | int | float],
        kind: BatchKind = BatchKind.SUBMITTED,
        owner: str = "",
        keep_s: int = 0,
    ) -> None:
        """Stop all work on the batch; every lease on it is lost.

        ``fields`` are those of ``{lf}:batch:<b>`` that do not follow from the jobs: digest, model, priority, budget,
        canary, webhook, preempt, paused_by, paused. ``kind``, ``owner`` and ``keep_s`` are those of ``create_batch``.
        Without a record of its creation, the batch is kept for ``keep_s`` seconds from now.
        """
        args = [argument for field in fields.items() for argument in field]
        account = account_of(kind, owner)
        self._ledger.run(self._ledger.scripts.restore_begin, self._batch, total, account, keep_s * 1000, *args)

    def write_part(
        self,
        part: int,
        states: Sequence[JobState],
        *,
        receipts: Mapping[int, dict[str, Any]],
        errors: Mapping[int, dict[str, str]],
        flushed: bool,
        generation: int = 0,
        truncated: int = 0,
        drafts: Mapping[int, int] | None = None,
    ) -> None:
        """Write the jobs of a part.

        Args:
            part: number of the part.
            states: state of each job.
            receipts: receipts that are not in the bucket's results, by index.
            errors: errors of the failed jobs, by index.
            flushed: the bucket's results have every line of the part.
            generation: generation of the object that has them, or some of them.
            truncated: done jobs whose prompt was too long for the model.
            drafts: epochs of the checkpoints of the drafted jobs, by index [default: none is drafted].
        """
        drafts = drafts or {}
        args: list[Any] = [part, bytes(states), int(flushed), truncated, generation, len(receipts), len(drafts)]
        for index, receipt in receipts.items():
            args += [index, receipt_text(receipt)]
        for draft in drafts.items():
            args += draft
        for index, error in errors.items():
            args += [index, error_text(error)]
        self._ledger.run(self._ledger.scripts.restore_part, self._batch, *args)

    def end(self, *, parts_digest: str, closed: bool, cancelled: bool, highest_generation: int = 0) -> BatchState:
        """Let the jobs of the batch run; return its state.

        ``highest_generation`` is that of all results in the bucket: later results have a higher one.
        """
        script = self._ledger.scripts.restore_end
        args = (self._batch, parts_digest, int(closed), int(cancelled), highest_generation)
        return known_state(self._batch, decode(self._ledger.run(script, *args)))
