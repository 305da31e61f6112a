"""The trace of a job: the strip of pictures from noise to result, for people who would rather look than read."""

from __future__ import annotations

import torch

from latentfarm.job import Job
from latentfarm_worker.models.base import Family

#: pictures of a strip, the finished one counted in
FRAMES = 8


class PreviewRecorder:
    """Decodes the latents of jobs that ask for a trace, every few steps; an engine's ``on_step``.

    Other jobs cost it nothing. It belongs to the engine's thread.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._frames: dict[str, list[torch.Tensor]] = {}

    def __call__(self, job: Job, calls: int, total: int, latents: torch.Tensor) -> None:
        """Note a step: ``calls`` of ``total`` calls of the model are made, ``latents`` is float32 (C, h, w)."""
        if calls == 1:
            # a job that begins again, after the device's memory ran out, has no past
            self._frames.pop(job.name, None)
        if job.trace and calls in frame_calls(total):
            # some schedulers carry latents far beyond unit variance, which the decoder never saw
            scaled = latents / latents.std().clamp(min=1.0)
            self._frames.setdefault(job.name, []).append(self._family.decode(scaled[None])[0][0].cpu())

    def take(self, job: Job, picture: torch.Tensor) -> torch.Tensor | None:
        """Return the strip, uint8 (height, width * frames, 3), that ends in ``picture``; None if none was asked for."""
        frames = self._frames.pop(job.name, [])
        return torch.cat([*frames, picture], dim=1) if job.trace else None

    def forget(self, name: str) -> None:
        """Drop the frames of a job that will not be finished here."""
        self._frames.pop(name, None)


def frame_calls(total: int) -> set[int]:
    """Return after which calls of the model, of ``total``, a frame is decoded: the first, then evenly to the last."""
    frames = min(FRAMES - 1, total - 1)
    return {1 + round(at * (total - 1) / frames) for at in range(frames)}
