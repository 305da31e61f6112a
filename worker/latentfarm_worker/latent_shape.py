"""The size of a latent image. This module imports no torch, so that admission can be tested without it."""

from __future__ import annotations

from typing import NamedTuple


class LatentShape(NamedTuple):
    """The sizes that images of one batch share: latent height and width, and the chunks of 77 tokens in a prompt."""

    height: int
    width: int
    chunks: int = 1

    @property
    def area(self) -> int:
        """Return the latent pixels of one channel."""
        return self.height * self.width
