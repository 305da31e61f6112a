"""latentfarm: a render farm for latent diffusion. This package is the light side: it imports no torch."""

from latentfarm.batch import Batch, BatchStatus, JobStatus
from latentfarm.errors import (
    InputError,
    InvalidRowsError,
    JobError,
    LatentfarmError,
    ModelError,
    UnavailableError,
)
from latentfarm.expansion import Expansion
from latentfarm.farm import Farm
from latentfarm.job import Job, JobState
from latentfarm.prompts import ReadOptions
from latentfarm.submission import Rules

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchStatus",
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
    "ReadOptions",
    "Rules",
    "UnavailableError",
]
