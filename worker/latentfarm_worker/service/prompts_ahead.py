"""The prompts of the rows behind a job: while text encoders are on the device, these are encoded with its own.

Few images wait for the engine, and one copy of the encoders takes as long as hundreds of prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from latentfarm.errors import InputError, JobError, UnavailableError
from latentfarm.job import Job
from latentfarm.ledger import Lease
from latentfarm.storage.bucket import MissingObjectError
from latentfarm.storage.keys import part_of
from latentfarm.storage.manifest import ManifestReader
from latentfarm_worker.text_encoders.prompt import Prompt

#: rows behind a job. Other workers render some of them, so not all are of use here
_ROWS = 64


def prompts_after(
    lease: Lease, manifest: ManifestReader, prompts_of: Callable[[Job], Sequence[Prompt]]
) -> tuple[Prompt, ...]:
    """Return the different prompts of the next rows in a job's part of the manifest, in their order.

    Rows that are not valid, or whose texts cannot be encoded, are left out: they fail when they are leased.

    Args:
        lease: the job.
        manifest: has the job's part at hand.
        prompts_of: tokenizes a job's texts.
    """
    found: dict[Prompt, None] = {}
    for index in range(lease.index + 1, lease.index + 1 + _ROWS):
        if part_of(index) != part_of(lease.index):
            break
        try:
            job = manifest.job(lease.batch, index, lease.created_ms)
        except (InputError, MissingObjectError, UnavailableError):
            # the last row, or one that is not valid
            break
        with suppress(JobError):
            found.update(dict.fromkeys(prompts_of(job)))
    return tuple(found)
