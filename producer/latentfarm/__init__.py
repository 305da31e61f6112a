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
from latentfarm.farm import Farm
from latentfarm.job import Job, JobState

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchStatus",
    "Farm",
    "InputError",
    "InvalidRowsError",
    "Job",
    "JobError",
    "JobState",
    "JobStatus",
    "LatentfarmError",
    "ModelError",
    "UnavailableError",
]
