"""latentfarm: a render farm for latent diffusion. This package imports no torch.

Exported names are imported at first use, so that a process that needs few of them stays small.
"""

from __future__ import annotations

# `typing` takes long to import: an interrupt during that is before the command line handles one
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from latentfarm.batch import Batch
    from latentfarm.batch_drafts import DraftReport, DraftSelection
    from latentfarm.batch_jobs import JobStatus
    from latentfarm.batch_state import BatchState, PausedBy
    from latentfarm.batch_status import BatchStatus
    from latentfarm.errors import (
        InputError,
        InvalidRowsError,
        JobError,
        LatentfarmError,
        ModelError,
        UnavailableError,
    )
    from latentfarm.farm import Farm
    from latentfarm.job import Job
    from latentfarm.job_state import JobState
    from latentfarm.submission.expansion import Expansion
    from latentfarm.submission.prompts import ReadOptions
    from latentfarm.submission.request import SubmitOptions

__version__ = "0.1.0"

_HOMES = {
    "batch": ("Batch",),
    "batch_drafts": ("DraftReport", "DraftSelection"),
    "batch_status": ("BatchStatus",),
    "batch_jobs": ("JobStatus",),
    "batch_state": ("BatchState", "PausedBy"),
    "errors": ("InputError", "InvalidRowsError", "JobError", "LatentfarmError", "ModelError", "UnavailableError"),
    "submission.expansion": ("Expansion",),
    "farm": ("Farm",),
    "job": ("Job",),
    "job_state": ("JobState",),
    "submission.prompts": ("ReadOptions",),
    "submission.request": ("SubmitOptions",),
}

__all__ = [
    "Batch",
    "BatchState",
    "BatchStatus",
    "DraftReport",
    "DraftSelection",
    "Expansion",
    "Farm",
    "InputError",
    "InvalidRowsError",
    "Job",
    "JobError",
    "JobState",
    "JobStatus",
    "LatentfarmError",
    "ModelError",
    "PausedBy",
    "ReadOptions",
    "SubmitOptions",
    "UnavailableError",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"latentfarm.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
