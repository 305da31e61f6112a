"""The states of a batch, and who paused it."""

from __future__ import annotations

from enum import StrEnum


class BatchState(StrEnum):
    """A batch's state, as the ledger stores it; ``PAUSED`` and ``DRAFTED`` are reported only.

    The usual path is OPENING, OPEN, COMPLETE.
    """

    #: the submission is still storing the manifest; stored jobs may run, and ``total`` grows
    OPENING = "opening"
    #: the manifest is stored; jobs run
    OPEN = "open"
    #: every job is done or failed; `retry` opens the batch again
    COMPLETE = "complete"
    #: the user ended the batch; finished images stay
    CANCELLED = "cancelled"
    #: `delete` is removing the batch's objects
    DELETING = "deleting"
    #: `recover` is rebuilding the batch from the bucket; no job is leased
    RECOVERING = "recovering"
    #: never stored: reported for an ACTIVE batch that is paused
    PAUSED = "paused"
    #: never stored: reported for an OPEN batch whose jobs have all ended, but some of them as drafts
    DRAFTED = "drafted"


#: jobs of the batch may be leased, unless it is paused
ACTIVE = frozenset({BatchState.OPENING, BatchState.OPEN})
#: no job of the batch changes by itself
FINAL = frozenset({BatchState.COMPLETE, BatchState.CANCELLED})
#: no job of the batch is to be rendered
CLOSED = FINAL | {BatchState.DELETING}


class PausedBy(StrEnum):
    """Who paused a batch. ``NOT_PAUSED`` is false."""

    NOT_PAUSED = ""
    USER = "user"
    #: a submission that stopped at too many invalid rows
    SUBMISSION = "submission"
    #: the first jobs have ended; the rest waits for `resume`
    CANARY = "canary"
    #: too many jobs failed
    FAILURE_BUDGET = "failure_budget"


_PAUSED_BY_LABELS = {
    PausedBy.NOT_PAUSED: "",
    PausedBy.USER: "by its user",
    PausedBy.SUBMISSION: "submission",
    PausedBy.CANARY: "canary",
    PausedBy.FAILURE_BUDGET: "failure budget",
}


def describe_pause(by: PausedBy, reason: str) -> str:
    """Return a pause as one line for the user, such as ``by its user: lunch``."""
    return ": ".join(filter(None, (_PAUSED_BY_LABELS[by], reason)))
