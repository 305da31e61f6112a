"""Resize an input image to the size of its job, as the job names it; never silently."""

from __future__ import annotations

import numpy as np
from PIL import Image

from latentfarm.edit_fields import Resize
from latentfarm.errors import JobError

#: as ``VaeImageProcessor`` of diffusers
_FILTER = Image.Resampling.LANCZOS


def resize(image: Image.Image, width: int, height: int, mode: Resize | None, *, fill: int | None = None) -> Image.Image:
    """Return an image of ``width`` x ``height`` pixels. One that has this size stays as it is.

    ``stretch`` changes the proportions. ``crop`` fills the size, and cuts off what is beyond it on both sides alike.
    ``pad`` fits within it, in the middle, and fills the rest with ``fill``, or with the pixels at the image's edges.

    Raises:
        JobError: code ``input_size``: it has another size, and there is no mode.
    """
    if image.size == (width, height):
        return image
    if mode is None:
        raise JobError(
            "input_size",
            f"it has {image.width}x{image.height} pixels, and the job {width}x{height}; write resize crop, pad or "
            "stretch, or its width and height",
        )
    if mode == "stretch":
        return image.resize((width, height), _FILTER)
    factors = width / image.width, height / image.height
    factor = max(factors) if mode == "crop" else min(factors)
    inner = (
        _scaled(image.width, factor, width, crop=mode == "crop"),
        _scaled(image.height, factor, height, crop=mode == "crop"),
    )
    scaled = image.resize(inner, _FILTER)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    if mode == "crop":
        return scaled.crop((-left, -top, width - left, height - top))
    samples = np.asarray(scaled)
    around = ((top, height - inner[1] - top), (left, width - inner[0] - left), *[(0, 0)] * (samples.ndim - 2))
    padded = np.pad(samples, around, "edge") if fill is None else np.pad(samples, around, constant_values=fill)
    return Image.fromarray(padded)


def _scaled(side: int, factor: float, wanted: int, *, crop: bool) -> int:
    """Return a side times a factor, within 1 and the wanted side, or at least the wanted one for ``crop``."""
    scaled = round(side * factor)
    return max(scaled, wanted) if crop else max(1, min(scaled, wanted))
