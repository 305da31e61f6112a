"""Previews of a job: a strip of intermediate images, from noise to result."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.outcomes import Rendered
from latentfarm_worker.models.base import Family

#: images in a strip, the finished one included
FRAMES = 8


class PreviewRecorder:
    """Decodes the latents of jobs with ``save_intermediates``, every few steps; an engine's ``on_step``.

    Not thread-safe: it belongs to the engine's thread.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._frames: dict[Hashable, list[torch.Tensor]] = {}

    def __call__(self, image: ImageState, latents: torch.Tensor) -> None:
        """Record a step. ``latents`` are float32 (C, h, w)."""
        if not image.job.save_intermediates:
            return
        if image.step_index == 1:
            # after an out-of-memory error the image starts again, so its earlier frames are stale
            self._frames.pop(image.handle, None)
        if image.step_index in frame_steps(image.plan.num_evaluations):
            # some schedulers carry latents far beyond the unit variance that the VAE was trained on
            scaled = latents / latents.std().clamp(min=1.0)
            self._frames.setdefault(image.handle, []).append(self._family.decode(scaled[None])[0][0].cpu())

    def take(self, rendered: Rendered) -> torch.Tensor | None:
        """Return the strip of an image, uint8 (height, width * frames, 3), and drop it.

        None if the job does not save intermediates.
        """
        frames = self._frames.pop(rendered.handle, [])
        return torch.cat([*frames, rendered.pixels], dim=1) if rendered.job.save_intermediates else None

    def forget(self, handle: Hashable) -> None:
        """Drop the frames of an image that will not be finished here."""
        self._frames.pop(handle, None)


def frame_steps(num_evaluations: int) -> set[int]:
    """Return the evaluations after which a frame is decoded: the first, then evenly spaced up to the last but one."""
    frames = min(FRAMES - 1, num_evaluations - 1)
    return {1 + round(at * (num_evaluations - 1) / frames) for at in range(frames)}
