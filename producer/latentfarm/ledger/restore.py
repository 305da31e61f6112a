"""Writing a batch's record anew, part by part; until it is ended nobody leases from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentfarm.job import JobState
from latentfarm.ledger.ledger import Ledger
from latentfarm.ledger.records import decode, error_text, receipt_text
from latentfarm.ledger.redis_errors import translate_errors


class Restoration:
    """One batch that is being restored. Methods raise ``UnavailableError`` when Redis does not answer.

    Killed midway, the batch stays ``recovering`` until it is restored again.
    """

    def __init__(self, ledger: Ledger, batch: str) -> None:
        self._ledger = ledger
        self._batch = batch

    def begin(self, *, total: int, fields: Mapping[str, str | int | float]) -> None:
        """Stop all work on the batch; every lease on it is lost.

        ``fields`` are those of the batch's hash that do not follow from its jobs: digest, model, priority and the like.
        """
        args: list[Any] = [self._batch, total]
        for name, value in fields.items():
            args += [name, value]
        with translate_errors(self._ledger.where):
            self._ledger.scripts.restore_begin(args=args)

    def write_part(
        self,
        part: int,
        states: Sequence[JobState],
        *,
        receipts: Mapping[int, dict[str, Any]],
        errors: Mapping[int, dict[str, str]],
        flushed: bool,
        truncated: int = 0,
    ) -> None:
        """Write the jobs of a part.

        ``flushed`` says that all its lines lie in the bucket already; ``truncated`` counts the done jobs with a text
        that lost its end.
        """
        args: list[Any] = [self._batch, part, bytes(states), int(flushed), truncated, len(receipts)]
        for index, receipt in receipts.items():
            args += [index, receipt_text(receipt)]
        for index, error in errors.items():
            args += [index, error_text(error)]
        with translate_errors(self._ledger.where):
            self._ledger.scripts.restore_part(args=args)

    def end(self, *, parts_digest: str, closed: bool, cancelled: bool) -> str:
        """Let the batch go on; return its state."""
        with translate_errors(self._ledger.where):
            return decode(
                self._ledger.scripts.restore_end(args=[self._batch, parts_digest, int(closed), int(cancelled)])
            )
