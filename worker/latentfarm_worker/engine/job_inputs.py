"""The input images of a job, decoded, resized to the job's size, and encoded by the VAE, on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latentfarm_worker.posterior import Posterior


@dataclass(frozen=True)
class JobInputs:
    """The input images of a job.

    Attributes:
        image: the image that the job begins with, uint8 (H, W, 3).
        posterior: its latents.
        mask: float32 (H, W) from 0, kept, to 1, painted again; blurred if the job blurs it.
        masked: the latents of the image without what is painted again, for a model that needs them.
        controls: the control images in the job's order, uint8 (H, W, 3), before any preprocessor.
        image_prompts: the images of its IP-Adapters in the job's order, uint8 (H, W, 3), in their own sizes.
    """

    image: torch.Tensor | None = None
    posterior: Posterior | None = None
    mask: torch.Tensor | None = None
    masked: Posterior | None = None
    controls: tuple[torch.Tensor, ...] = ()
    image_prompts: tuple[torch.Tensor, ...] = ()


#: those of a job of text alone
NO_INPUTS = JobInputs()
