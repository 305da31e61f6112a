"""Validate the rows of a request before anything is stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from latentfarm.errors import InputError, InvalidRowsError
from latentfarm.job import Row
from latentfarm.model_facts import ModelFacts
from latentfarm.submission.prompts import RowError, SourceLike
from latentfarm.submission.request import Request, SubmitOptions, make_request
from latentfarm.webhooks.address_check import check_url

#: a file of fewer rows is validated whole before anything is stored; of a larger one, so many rows
VALIDATE_FIRST_ROWS = 100_000

#: rows before the share of invalid ones is meaningful
_MIN_ROWS_FOR_SHARE = 1_000
#: invalid rows after which validation stops: more of them have the same few causes
_MAX_INVALID_ROWS = 10_000
#: invalid rows that are listed one by one; the others are counted
_MAX_PROBLEMS = 20


@dataclass
class ValidationReport:
    """Counts of valid and invalid rows. ``problems`` are the messages of the first 20 invalid ones."""

    valid: int = 0
    invalid: int = 0
    problems: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    #: whether every row was read
    complete: bool = True

    @classmethod
    def read(cls, rows: Iterable[Row | RowError], *, limit: int | None = None) -> ValidationReport:
        """Return the report on the rows: on ``limit`` rows at most, and on 10,000 invalid ones at most."""
        report = cls()
        for row in rows:
            if report.rows == limit or report.invalid == _MAX_INVALID_ROWS:
                report.complete = False
                break
            report.add(row)
        return report

    @property
    def rows(self) -> int:
        """Number of rows read."""
        return self.valid + self.invalid

    def add(self, row: Row | RowError) -> None:
        """Count one row."""
        if isinstance(row, RowError):
            self.invalid += 1
            self.reasons[row.reason] += 1
            if len(self.problems) < _MAX_PROBLEMS:
                self.problems.append(row.text)
        else:
            self.valid += 1

    def exceeds(self, share: float) -> bool:
        """Return whether more than ``share`` of the rows are invalid. Below 1,000 rows: False."""
        return self.rows >= _MIN_ROWS_FOR_SHARE and self.invalid > share * self.rows

    def error(self, outcome: str) -> InvalidRowsError:
        """Return the exception that lists the invalid rows; ``outcome`` describes what became of the batch."""
        return InvalidRowsError(self.problems, self.invalid, reasons=self.reasons, outcome=outcome)


def make_valid_request(
    source: SourceLike,
    options: SubmitOptions,
    *,
    find_facts: Callable[[Request], ModelFacts | None] | None = None,
    **arguments: Any,
) -> Request:
    """Return the request that ``make_request`` makes, after its rows have been validated.

    Args:
        source: the rows.
        options: how invalid rows are handled.
        find_facts: returns what workers have announced of the model; None: it is not known yet.
        arguments: those of ``make_request``.

    Raises:
        InputError: see ``make_request`` and ``validate``.
    """
    request = make_request(source, **arguments)
    if find_facts is not None:
        request = request.with_facts(find_facts(request))
    validate(request, options)
    return request


def validate(request: Request, options: SubmitOptions) -> None:
    """Read the rows of a small file, or the first 100,000 of a large one. Nothing is stored.

    Raises:
        InvalidRowsError: rows are invalid; in a file of 100,000 rows or more, above ``options.max_invalid``.
        InputError: there is no prompt, the webhook's URL is refused, or the source can be read only once and
            ``options.validate_first`` is set.
    """
    if options.webhook:
        check_url(options.webhook)
    if options.validate_first is False:
        return
    if request.source.digest is None:
        if options.validate_first:
            raise InputError(
                f"{request.source.name} can be read only once, so it cannot be validated first; save it to a file"
            )
        return
    limit = None if options.validate_first else VALIDATE_FIRST_ROWS
    report = ValidationReport.read((row for _, row in request.rows()), limit=limit)
    if report.invalid == _MAX_INVALID_ROWS and not report.complete:
        raise report.error(f"nothing was enqueued; reading stopped after {report.rows:,} rows")
    if report.invalid and (report.complete or report.exceeds(options.max_invalid)):
        raise report.error("nothing was enqueued")
    if not report.valid:
        raise no_prompt_error(request)


def no_prompt_error(request: Request) -> InputError:
    """Return the error for a source without prompts."""
    return InputError(f"{request.source.name} has no prompts; write one per line")
