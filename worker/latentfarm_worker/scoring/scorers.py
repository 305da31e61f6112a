"""Which scores are recorded of an image, and what follows if a scorer fails: none, but for a warning."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from latentfarm.errors import JobError, ModelError
from latentfarm.job import Job
from latentfarm.monitoring.logs import log_fields
from latentfarm.settings import Settings
from latentfarm_worker.scoring.clip import ClipScorer
from latentfarm_worker.scoring.measures import contrast, phash, sharpness
from latentfarm_worker.scoring.plugins import Scorer, load_plugins
from latentfarm_worker.text_encoders.prompt_weights import parse

log = logging.getLogger(__name__)

#: those that every worker has
MEASURES: Mapping[str, Callable[[Image.Image], float | str]] = MappingProxyType(
    {"sharpness": sharpness, "contrast": contrast, "phash": phash}
)
CLIP = "clip"


class Scorers:
    """The scorers of a worker. Thread-safe.

    Scores are computed on the host, on the thread that stores the image. Scorers of packages are called one at a time,
    so they need not be thread-safe.

    Args:
        added: the scorers besides ``MEASURES``, by name.
    """

    def __init__(self, added: Mapping[str, Scorer] = MappingProxyType({})) -> None:
        self._added = dict(added)
        self._lock = Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all scorers."""
        return (*MEASURES, *self._added)

    def require(self, job: Job) -> None:
        """Check that there is each scorer that a job names.

        Raises:
            JobError: code ``scorer_unknown``: there is not.
        """
        for name in job.scorers:
            if name not in self.names:
                raise JobError(
                    "scorer_unknown",
                    f"scorer {name!r} is unknown on this worker, which has {', '.join(self.names)}; install it there, "
                    "or remove it from scorers",
                )

    def score(self, job: Job, pixels: torch.Tensor, *, draft: bool = False) -> dict[str, Any]:
        """Return the entry of a job's receipt, ``scores``, by its image; nothing if the job wants none.

        Args:
            job: names scorers.
            pixels: uint8 (H, W, 3) on the CPU.
            draft: it is the preview of a draft, of which ``MEASURES`` are always recorded.
        """
        names = tuple(dict.fromkeys((*(MEASURES if draft else ()), *job.scorers)))
        if not names:
            return {}
        image = Image.fromarray(pixels.numpy())
        return {"scores": {name: self._score(name, job, image) for name in names}}

    def _score(self, name: str, job: Job, image: Image.Image) -> float | str | None:
        """Return a score; None if the scorer fails."""
        if name in MEASURES:
            return MEASURES[name](image)
        try:
            with self._lock:
                # a copy, because others read the image after it
                score = float(self._added[name](plain_text(job), image.copy()))
            if not math.isfinite(score):
                raise ValueError(f"the score is {score}")
        except Exception as error:  # noqa: BLE001 - it is other people's code, and must fail no image
            log.warning(
                "%s has no score by %s: %s: %s", job.name, name, type(error).__name__, error, extra=log_fields(job.name)
            )
            return None
        return score


def plain_text(job: Job) -> str:
    """Return a job's prompt without the weights of its words."""
    if job.prompt_syntax == "plain":
        return job.prompt
    return " ".join("".join(piece.text for piece in section).strip() for section in parse(job.prompt)).strip()


def load_scorers(settings: Settings) -> Scorers:
    """Return the scorers of a worker: those of installed packages, and CLIP's if the operator names a model.

    Raises:
        ModelError: one cannot be loaded, or has the name of another.
    """
    own: dict[str, Scorer] = {CLIP: ClipScorer.load(Path(settings.clip_scorer))} if settings.clip_scorer else {}
    plugins = load_plugins(settings)
    if taken := sorted(plugins.keys() & {*MEASURES, *own}):
        raise ModelError(f"an installed package has a scorer {taken[0]!r}, the name of a built-in one; uninstall it")
    return Scorers({**own, **plugins})
