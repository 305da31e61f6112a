"""Validate the rows of a request before anything is stored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from latentfarm.errors import InputError, InvalidRowsError
from latentfarm.job import Row
from latentfarm.submission.prompts import RowError
from latentfarm.submission.request import Request, SubmitOptions
from latentfarm.webhooks.address_check import check_url

#: files of fewer rows are checked whole before anything is opened
CHECK_FIRST_ROWS = 100_000


_INVALID_AFTER = 1_000


#: wrong rows after which a check gives up; nobody mends them one by one
_CHECK_GIVES_UP = 10_000


#: wrong rows that are told one by one; the rest is counted
_SHOWN_PROBLEMS = 20


@dataclass
class ValidationReport:
    """Wrong rows, counted; the first of them in full."""

    good: int = 0
    wrong: int = 0
    shown: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row | RowError) -> None:
        """Take in the next row."""
        if isinstance(row, RowError):
            self.wrong += 1
            self.reasons[row.reason] += 1
            if len(self.shown) < _SHOWN_PROBLEMS:
                self.shown.append(row.text)
        else:
            self.good += 1

    def too_many(self, share: float) -> bool:
        """Whether more than ``share`` of the rows are wrong, once there are enough of them to tell."""
        seen = self.good + self.wrong
        return seen >= _INVALID_AFTER and self.wrong > share * seen

    def error(self, outcome: str) -> InvalidRowsError:
        """Return what to raise; ``outcome`` says what became of the batch."""
        return InvalidRowsError(self.shown, self.wrong, reasons=self.reasons, outcome=outcome)


def validate(request: Request, rules: SubmitOptions) -> None:
    """Read the rows before anything is opened: all of a small file, or the first 100,000.

    Raises:
        InvalidRowsError: some are wrong; in a file that will be streamed, more than ``rules.max_invalid``.
        InputError: there is no row at all, the source cannot be read twice and was to be checked first, or the
            webhook is no https URL.
    """
    if rules.webhook:
        check_url(rules.webhook)
    if rules.check_first is False:
        return
    if request.source.digest is None:
        if rules.check_first:
            raise InputError(f"{request.source.name} cannot be read twice, so it cannot be checked first; save it")
        return
    found, whole = ValidationReport(), True
    for _, row in request.rows():
        found.add(row)
        if found.wrong >= _CHECK_GIVES_UP:
            rows = f"{found.good + found.wrong:,} rows"
            raise found.error(f"nothing was enqueued, and the rest was not read after {rows}")
        if not rules.check_first and found.good + found.wrong >= CHECK_FIRST_ROWS:
            whole = False
            break
    if found.wrong and (whole or found.too_many(rules.max_invalid)):
        raise found.error("nothing was enqueued")
    if not found.good:
        raise no_prompt(request)


def no_prompt(request: Request) -> InputError:
    """Return the error for a source without any prompt."""
    return InputError(f"{request.source.name} holds no prompt; write one a line")
