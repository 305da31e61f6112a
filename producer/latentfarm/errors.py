"""Every error of the house, in one small tree.

::

    LatentfarmError
    ├── InputError            the row's or the command's fault: refused before anything is enqueued (exit 2)
    │   └── InvalidRowsError  wrong rows of a prompt file, each with place, value and cure
    ├── UnavailableError      the store's or the queue's fault: retry later (exit 3)
    ├── SchemaError           the ledger was written by another version of latentfarm (exit 2)
    ├── JobError              the job's own fault: it becomes ``failed`` with this error's code
    └── ModelError            a model that cannot be loaded: the worker does not start (exit 2)
"""

from __future__ import annotations

from collections.abc import Mapping

_TOLD_REASONS = 10


class LatentfarmError(Exception):
    """Base of every error that latentfarm raises on purpose; its text is meant for the user."""

    exit_code = 2


class InputError(LatentfarmError):
    """A command, a setting or a row asks for something that is not allowed."""


class InvalidRowsError(InputError):
    """Rows of a prompt file are wrong.

    ``problems`` holds the first ones as text, ``total`` how many there are, ``reasons`` counts them by reason;
    ``outcome`` says what became of the batch.
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
        super().__init__("\n".join([*lines, f"{total} {noun}{counted(self.reasons)}; {outcome}"]))


def counted(reasons: Mapping[str, int]) -> str:
    """Return the counts by reason in brackets, the most frequent first; nothing where there is but one problem."""
    if sum(reasons.values()) < 2:
        return ""
    ordered = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))
    told = [f"{reason}: {count}" for reason, count in ordered[:_TOLD_REASONS]]
    if len(ordered) > _TOLD_REASONS:
        told.append(f"{len(ordered) - _TOLD_REASONS} other reasons")
    return f" ({', '.join(told)})"


class UnavailableError(LatentfarmError):
    """Redis or the bucket does not answer or refuses the credentials."""

    exit_code = 3


class SchemaError(LatentfarmError):
    """Another version of latentfarm wrote the ledger. Nothing in it was changed."""

    def __init__(self, where: str, *, theirs: str, ours: str) -> None:
        super().__init__(
            f"the ledger in Redis at {where} has schema {theirs}, and this version of latentfarm needs schema {ours}. "
            "Use the version that wrote the ledger, or rebuild the ledger from the bucket: stop all workers, empty this "
            "Redis database (FLUSHDB), run `latentfarm recover`"
        )


class JobError(LatentfarmError):
    """One job cannot be rendered, and no other worker could either.

    ``code`` is stable and short (``scheduler``, ``too_large``, ``render``): users group failures by it.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class ModelError(LatentfarmError):
    """A model's weights or layout cannot be used: missing, not safetensors, an unknown kind of pipeline."""
