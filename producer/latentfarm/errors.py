"""All errors that latentfarm raises on purpose.

::

    LatentfarmError             base class; its text is for the user
      ├── InputError            a command, setting or row is invalid. Correct it; exit code 2
      │     ├── InvalidRowsError  rows of a prompt file are invalid
      │     ├── NotFoundError     there is no such batch or job
      │     └── ConflictError     the batch's state or content does not allow it
      ├── UnavailableError      Redis or the bucket does not answer. Retry later, as workers do; exit code 3
      ├── SchemaError           another version wrote the ledger. Workers stop; exit code 2
      ├── JobError              the job cannot be rendered: it fails with the error's code, the worker continues
      └── ModelError            the model cannot be loaded: the worker does not start; exit code 2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

#: reasons that are listed one by one
_MAX_REASONS = 10


class LatentfarmError(Exception):
    """Base of the errors that latentfarm raises on purpose. Its text is for the user."""

    exit_code = 2


class InputError(LatentfarmError):
    """A command, a setting or a row is invalid.

    Attributes:
        field: the field of a batch's defaults that is invalid; empty if it is none of them.
    """

    def __init__(self, message: str = "", *, field: str = "") -> None:
        self.field = field
        super().__init__(message)


class NotFoundError(InputError):
    """There is no such batch, job or worker."""


class ConflictError(InputError):
    """A batch's state or content does not allow what was requested."""


class InvalidRowsError(InputError):
    """Rows of a prompt file are invalid.

    Attributes:
        problems: the first problems, each with place, value and cure.
        total: the number of problems.
        reasons: the number of problems by reason.
    """

    def __init__(
        self,
        problems: list[str],
        total: int,
        *,
        reasons: Mapping[str, int] | None = None,
        outcome: str = "nothing was enqueued",
    ) -> None:
        self.problems = problems
        self.total = total
        self.reasons = dict(reasons or {})
        lines = list(problems)
        if total > len(problems):
            lines.append(f"... and {total - len(problems)} more")
        noun = "problem" if total == 1 else "problems"
        super().__init__("\n".join([*lines, f"{total} {noun}{format_counts(self.reasons)}; {outcome}"]))


def describe(error: BaseException) -> str:
    """Return the type and the message of an exception that nothing foresaw."""
    return f"{type(error).__name__}: {error}"


def format_counts(reasons: Mapping[str, int]) -> str:
    """Return the counts by reason in brackets, the most frequent first; an empty text for fewer than two problems."""
    if sum(reasons.values()) < 2:
        return ""
    ordered = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))
    listed = [f"{reason}: {count}" for reason, count in ordered[:_MAX_REASONS]]
    if len(ordered) > _MAX_REASONS:
        listed.append(f"{len(ordered) - _MAX_REASONS} other reasons")
    return f" ({', '.join(listed)})"


class UnavailableError(LatentfarmError):
    """Redis or the bucket does not answer, or refuses what the farm needs. It may answer later.

    ``cause`` is one short word, such as ``timeout``, ``OOM`` or ``store``: a label of metrics.
    """

    exit_code = 3

    def __init__(self, message: str, *, cause: str = "unavailable") -> None:
        self.cause = cause
        super().__init__(message)


class SchemaError(LatentfarmError):
    """Another version of latentfarm wrote the ledger. Nothing in it was changed."""

    def __init__(self, where: str, *, theirs: str, ours: str) -> None:
        super().__init__(
            f"the ledger in Redis at {where} has schema {theirs}, and this version of latentfarm needs schema {ours}. "
            "Use the version that wrote the ledger, or rebuild the ledger from the bucket: stop all workers, empty "
            "this Redis database (FLUSHDB), run `latentfarm recover`"
        )


class JobError(LatentfarmError):
    """A job cannot be rendered by any worker.

    ``code`` is short and stable, such as ``scheduler`` or ``engine_error``: users group failures by it.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)

    @classmethod
    def unexpected(cls, code: str, error: Exception) -> Self:
        """Return the error of a job for an exception that nothing foresaw."""
        return cls(code, describe(error))


class ModelError(LatentfarmError):
    """A model cannot be loaded: files are missing, weights are not safetensors, or the pipeline is not supported."""
