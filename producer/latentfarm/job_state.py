"""The states of a job and the allowed transitions between them."""

from __future__ import annotations

from enum import IntEnum

#: the error code of an invalid row's job
INVALID_ROW = "invalid_row"


class JobState(IntEnum):
    """A job's state: its byte in the ledger."""

    PENDING = 0
    LEASED = 1
    DONE = 2
    FAILED = 3
    CANCELLED = 4
    #: stopped on purpose at a step, with a checkpoint and a preview, until it is finished or discarded
    DRAFTED = 5

    @property
    def word(self) -> str:
        """The state's name for users."""
        return self.name.lower()


#: a job leaves these states only on a user's command
TERMINAL_STATES = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.DRAFTED})

#: a worker has committed an image of the job, which may be a draft's preview; it has a receipt
COMMITTED_STATES = frozenset({JobState.DONE, JobState.DRAFTED})

#: every transition of a job; the ledger's scripts make no other
ALLOWED_MOVES = frozenset(
    {
        (JobState.PENDING, JobState.LEASED),  # lease
        (JobState.LEASED, JobState.PENDING),  # release, parked or not, or the lease expired
        (JobState.LEASED, JobState.DONE),  # commit
        (JobState.LEASED, JobState.FAILED),  # fail, or the last attempt was lost
        (JobState.PENDING, JobState.FAILED),  # an invalid row of a streamed submission
        (JobState.FAILED, JobState.PENDING),  # retry
        (JobState.PENDING, JobState.CANCELLED),  # cancel
        (JobState.LEASED, JobState.CANCELLED),  # cancel
        (JobState.LEASED, JobState.DRAFTED),  # commit of a draft
        (JobState.DRAFTED, JobState.PENDING),  # finish
        (JobState.DRAFTED, JobState.CANCELLED),  # discard, cancel
    }
)
