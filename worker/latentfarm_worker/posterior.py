"""What a VAE makes of an image: a distribution of latents."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Posterior(NamedTuple):
    """The VAE's distribution of the latents of an image: mean and standard deviation, float32 (C, h, w), on the host.

    They are in the VAE's own scale.
    """

    mean: torch.Tensor
    std: torch.Tensor
