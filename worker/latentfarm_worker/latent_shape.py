"""The size of a latent image. This module imports no torch, so that admission can be tested without it."""

from __future__ import annotations

from typing import NamedTuple


class LatentShape(NamedTuple):
    """Latent height and width, which the images of one batch share."""

    height: int
    width: int

    @property
    def area(self) -> int:
        """Return the latent pixels of one channel."""
        return self.height * self.width
