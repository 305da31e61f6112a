"""Small images of latents without the VAE: a linear map from each latent pixel to a colour.

The map is fitted to images that were decoded anyway, so it needs no constants of a model: latents are nearly linear in
the average colour of the pixels that they stand for.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

#: images that the map is fitted to; later ones would hardly change it
_MAX_IMAGES = 64
#: keeps the map small where the images so far do not determine it, as a share of each channel's mean square
_RIDGE = 1e-3


class LatentColors:
    """A least-squares fit from C latent channels and a constant to three colours. It belongs to one thread.

    It works with NumPy: torch would start threads for this one beside those of the engine.
    """

    def __init__(self) -> None:
        self._images = 0
        #: of the normal equations, summed over the images: inputs with inputs, and inputs with colours
        self._squares: NDArray[np.float64] | float = 0.0
        self._products: NDArray[np.float64] | float = 0.0
        #: (3, C + 1)
        self._weights: NDArray[np.float32] | None = None

    def add(self, latents: torch.Tensor, pixels: torch.Tensor) -> None:
        """Learn from finite latents, float32 (C, h, w), and their image, uint8 (H, W, 3)."""
        if self._images == _MAX_IMAGES:
            return
        self._images += 1
        channels, height, width = latents.shape
        inputs = np.ones((channels + 1, height * width))
        inputs[:channels] = latents.numpy().reshape(channels, -1)
        self._squares = self._squares + inputs @ inputs.T
        self._products = self._products + inputs @ _averages(pixels.numpy(), height, width)
        ridge = np.diag(_RIDGE * np.diagonal(self._squares))
        # a channel that is always 0 has no inverse
        weights, *_ = np.linalg.lstsq(self._squares + ridge, self._products, rcond=None)
        self._weights = weights.T.astype(np.float32)

    def image(self, latents: torch.Tensor) -> NDArray[np.uint8] | None:
        """Return an image of latents, float32 (C, h, w): uint8 (h, w, 3), or None before the first ``add``.

        What is not a number is black.
        """
        if self._weights is None:
            return None
        channels, height, width = latents.shape
        colors = self._weights[:, :channels] @ latents.numpy().reshape(channels, -1) + self._weights[:, channels:]
        levels = np.nan_to_num(colors * 255, nan=0.0).clip(0, 255).round().astype(np.uint8)
        return np.ascontiguousarray(levels.T).reshape(height, width, 3)


def _averages(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """Return the average colours, from 0 to 1, of the pixels that each latent pixel stands for: (height * width, 3)."""
    down, across = pixels.shape[0] // height, pixels.shape[1] // width
    # whole lines first: several times as fast as both at once
    lines = pixels.reshape(height, down, -1).sum(axis=1, dtype=np.uint16)
    sums: NDArray[np.uint32] = lines.reshape(height * width, across, 3).sum(axis=1, dtype=np.uint32)
    return sums / np.float64(255 * down * across)
