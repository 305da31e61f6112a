"""What a job ends with: an image, a draft, or the error of its own fault. And what is put down, and partial images."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.adapters.base import UsedAdapter
from latentfarm_worker.engine.image_checkpoint import ImageCheckpoint, RenderSpan
from latentfarm_worker.engine.job_inputs import JobInputs


class SecondStage(NamedTuple):
    """How the second stage of an image was made: as ``Rendered`` has it of the first."""

    micro_batch: int
    plan_digest: str


@dataclass(frozen=True)
class Rendered:
    """A finished image.

    Attributes:
        handle: the caller's key, as given to ``Engine.prepare``.
        decoded: what the decoder made, uint8 (height, width, 3) on the CPU; ``pixels`` is the image.
        inputs: the job's input images.
        frames: its intermediates from noise to result, as ``decoded``; empty unless the job saves them.
        width, height: pixels of the image.
        requested: the job's width and height: those of the image, or of the first stage.
        second: the second stage, if there was one.
        scheduler: diffusers' class name.
        micro_batch: rows of a call of the model, in the first stage; with the same number the bytes are the same.
        plan_digest: of the sampling plan, in the first stage.
        adapters: what it was made with.
        truncated: the job's fields whose text was cut off, ``prompt`` and ``negative_prompt``.
        tokens: tokens of its prompts, without padding.
        decode_group: images in its call of the decoder; with the same number the bytes are the same.
        tiled: whether it was decoded in tiles, for lack of memory.
        timings: seconds of ``wait``, ``text``, ``denoise`` (wall clock, from admission to the last step) and
            ``decode`` (its share of the group's).
        checkpoint: that of a draft, of whose finished image ``decoded`` is an estimate; None: the image is finished.
        spans: where an image was made that was put down at least once; empty for all others.
        forked: evaluations that another image made for both; 0: none.
        evaluations: of the model, in all stages of the finished image.
        evaluations_made: those that were made here.
    """

    job: Job
    handle: Hashable
    decoded: torch.Tensor
    inputs: JobInputs
    width: int
    height: int
    requested: tuple[int, int]
    second: SecondStage | None
    frames: tuple[torch.Tensor, ...]
    scheduler: str
    micro_batch: int
    plan_digest: str
    adapters: tuple[UsedAdapter, ...]
    truncated: tuple[str, ...]
    tokens: int
    decode_group: int
    tiled: bool
    timings: dict[str, float]
    checkpoint: ImageCheckpoint | None = None
    spans: tuple[RenderSpan, ...] = ()
    forked: int = 0
    evaluations: int = 0
    evaluations_made: int = 0

    @cached_property
    def pixels(self) -> torch.Tensor:
        """Return the image, uint8 (height, width, 3) on the CPU.

        What a mask keeps is that of the input image, to the bit, which no decoder gives back. At the edges of a blurred
        mask both are mixed.
        """
        original, mask = self.inputs.image, self.inputs.mask
        if original is None or mask is None:
            return self.decoded
        kept = original.float()
        # computed when it is first needed, on a thread that encodes images and not on the engine's
        return (kept + mask[..., None] * (self.decoded.float() - kept)).round().to(torch.uint8)

    @property
    def strip(self) -> torch.Tensor | None:
        """Return the intermediates and the image side by side, uint8 (height, width * images, 3).

        None for a draft, or if the job does not save intermediates.
        """
        saved = self.job.save_intermediates and self.checkpoint is None
        return torch.cat([*self.frames, self.pixels], dim=1) if saved else None


class Parked(NamedTuple):
    """An image that was taken out of the engine midway. ``handle``: as of ``Rendered``."""

    job: Job
    handle: Hashable
    checkpoint: ImageCheckpoint


@dataclass(frozen=True)
class Preview:
    """A partial image: the estimate of the finished image by one evaluation of the model.

    Attributes:
        handle: as of ``Rendered``.
        number: counts the job's partial images from 0.
        step: evaluations of ``steps`` that were done.
        pixels: uint8 (height, width, 3) on the CPU.
    """

    job: Job
    handle: Hashable
    number: int
    step: int
    steps: int
    pixels: torch.Tensor


@dataclass(frozen=True)
class Failed:
    """A job that failed through its own fault. Other images are not affected. If ``retry``, it may run again."""

    job: Job
    handle: Hashable
    error: JobError
    retry: bool = False


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type: a MemoryError has no message."""
    return str(error).partition("\n")[0] or type(error).__name__


def out_of_memory(message: str) -> JobError:
    """Return the error of a job that does not fit alone."""
    cure = "render it smaller, or on a device with more memory"
    return JobError("oom", f"not enough memory for this job alone ({message}); {cure}")


def engine_error(error: Exception) -> JobError:
    """Return the error of a job for an exception of a call: itself if it is a job's, else one not foreseen."""
    return error if isinstance(error, JobError) else JobError.unexpected("engine_error", error)
