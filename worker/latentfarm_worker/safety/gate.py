"""Which images are checked, and what follows: scores in the receipt, or a job that fails."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from latentfarm.edit_fields import Safety
from latentfarm.errors import JobError, ModelError
from latentfarm.job import Job
from latentfarm.model_source import is_hub_id, parse_source
from latentfarm_worker.checkpoints import hub
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.safety.checker import SafetyChecker

_ORDER: tuple[Safety, ...] = ("off", "score", "refuse")
#: a model's sub-folder with its checker
_PART = "safety_checker"


class SafetyGate:
    """Checks the images of one model. Thread-safe.

    An image is checked by itself, on the host, on the thread that stores it. So its scores do not depend on its
    company, and the device goes on meanwhile. One image is checked at a time, so that the others' threads keep a core.

    Args:
        folder: the checker's folder; None: there is no checker.
        minimum: what the operator requires of each job.
    """

    def __init__(self, folder: Path | None = None, minimum: Safety = "off") -> None:
        self._folder, self._minimum = folder, minimum
        self._lock = Lock()

    @property
    def available(self) -> bool:
        """Whether there is a checker."""
        return self._folder is not None

    def mode_of(self, job: Job) -> Safety:
        """Return what is done with a job's image: what the job or the operator wants, whichever is more."""
        return max(job.safety, self._minimum, key=_ORDER.index)

    def require(self, job: Job) -> None:
        """Check that a job's image can be checked, if it is to be.

        Raises:
            JobError: code ``safety_unavailable``: there is no checker.
        """
        if self.mode_of(job) != "off" and not self.available:
            raise JobError(
                "safety_unavailable",
                f"safety is {job.safety!r}, and this worker has no safety checker; set LATENTFARM_SAFETY_CHECKER for "
                "it, or write off",
            )

    def prepared(self, image: ImageState) -> ImageState:
        """Return an image that is ready for the engine.

        If unsafe images are refused, it has no partial images: they would be stored before it is checked.
        """
        if self.mode_of(image.job) == "refuse":
            image.previews = len(image.preview_steps)
        return image

    def check(self, job: Job, pixels: torch.Tensor) -> dict[str, Any]:
        """Return the entry of a job's receipt, ``safety``, by its image, uint8 (H, W, 3); nothing if it is ``off``.

        Raises:
            JobError: code ``unsafe`` for an image with an unsafe concept that the mode ``refuse`` does not store,
                ``safety_unavailable`` for a checker that cannot be loaded.
        """
        mode = self.mode_of(job)
        if mode == "off":
            return {}
        self.require(job)
        with self._lock:
            scores = self.load().scores(pixels)
        if mode == "refuse" and scores.found:
            numbers = ", ".join(map(str, scores.found))
            raise JobError(
                "unsafe",
                f"the safety checker finds the concepts {numbers} in the image, which is not stored; change the prompt "
                "or the seed",
            )
        return {"safety": scores.as_receipt()}

    def load(self) -> SafetyChecker:
        """Return the checker, which the first call loads.

        Raises:
            JobError: code ``safety_unavailable``: it cannot be loaded.
        """
        assert self._folder is not None  # noqa: S101 (`require` was called)
        try:
            return load_checker(self._folder)
        except ModelError as error:
            raise JobError("safety_unavailable", str(error)) from error


@lru_cache(maxsize=1)
def load_checker(folder: Path) -> SafetyChecker:
    """Return the checker of a folder, which the models of a worker share.

    Raises:
        ModelError: it cannot be loaded.
    """
    return SafetyChecker.load(folder)


def open_gate(minimum: Safety, source: str, *, model: str) -> SafetyGate:
    """Return the gate of a model's images.

    A checker that the operator names or requires is loaded now, so that one that cannot be used is an error at the
    start; a model's own only for the first image that is checked.

    Args:
        minimum: what the operator requires of each job.
        source: as of ``find_checker``.
        model: the model's source.

    Raises:
        ModelError: the checker is required and not there, or cannot be loaded.
    """
    folder = find_checker(source, model)
    if folder is None and minimum != "off":
        raise ModelError(
            f"LATENTFARM_SAFETY is {minimum}, and {model} has no safety checker; name one with "
            "LATENTFARM_SAFETY_CHECKER, such as CompVis/stable-diffusion-safety-checker"
        )
    if folder is not None and (source or minimum != "off"):
        load_checker(folder)
    return SafetyGate(folder, minimum)


def find_checker(source: str, model: str) -> Path | None:
    """Return the folder of a safety checker, or None if there is none.

    Args:
        source: a folder, a model's folder with one, or a hub id, from which it is downloaded; empty: the model's own.
        model: the model's source. A model of the hub is downloaded without its checker.

    Raises:
        ModelError: the source has none.
    """
    place = Path(source or parse_source(model).location)
    if not source:
        own = place / _PART
        return own if any(own.glob("*.safetensors")) else None
    if is_hub_id(source) and not place.exists():
        names = ("config.json", "preprocessor_config.json", *hub.weight_patterns(""))
        return hub.snapshot(source, patterns=[name for name in names if "/" not in name])
    folder = place / _PART if (place / _PART).is_dir() else place
    if not (folder / "config.json").is_file():
        raise ModelError(f"LATENTFARM_SAFETY_CHECKER is {source!r}, and there is no {folder / 'config.json'}")
    return folder
