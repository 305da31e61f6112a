"""What is found out about an image besides how it was made: safety and scores, for its receipt."""

from __future__ import annotations

from typing import Any

from latentfarm.job import Job
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.outcomes import Rendered
from latentfarm_worker.safety.gate import SafetyGate
from latentfarm_worker.scoring.scorers import Scorers


class ImageReview:
    """Reviews the images of one model, each by itself, on the thread that stores it. Thread-safe.

    Args:
        safety: checks the images [default: there is no checker].
        scorers: scores them [default: those that need no model].
    """

    def __init__(self, safety: SafetyGate | None = None, scorers: Scorers | None = None) -> None:
        self.safety = safety or SafetyGate()
        self.scorers = scorers or Scorers()

    def require(self, job: Job) -> None:
        """Check that a job's image can be reviewed, before it is rendered.

        Raises:
            JobError: code ``safety_unavailable`` or ``scorer_unknown``.
        """
        self.safety.require(job)
        self.scorers.require(job)

    def prepared(self, image: ImageState) -> ImageState:
        """Return an image that is ready for the engine."""
        return self.safety.prepared(image)

    def entries(self, image: Rendered) -> dict[str, Any]:
        """Return the entries of the receipt, ``safety`` and ``scores``; none that the job does not want.

        Raises:
            JobError: code ``unsafe`` or ``safety_unavailable``.
        """
        job, draft = image.job, image.checkpoint is not None
        return {**self.safety.check(job, image.pixels), **self.scorers.score(job, image.pixels, draft=draft)}
