"""Scores that need no model. They are computed from whole numbers, so the same pixels give the same scores everywhere.

The luma of a pixel is Pillow's mode ``L``: Y = (299 R + 587 G + 114 B) / 1000, from 0 to 255, as ITU-R BT.601 has it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

#: pixels of a side of the small image that is hashed, and frequencies of each direction whose signs are the bits
_SIDE, _FREQUENCIES = 32, 8
#: digits of a coefficient that are compared: beyond them are rounding errors, which differ between processors
_COMPARED_DIGITS = 4


def sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian of the luma, 0 for an image without edges.

    The Laplacian of a pixel is the sum of its four neighbours less four times itself; pixels at the border have none.
    It is the measure LAPV of Pertuz et al., "Analysis of focus measure operators for shape-from-focus" (2013).
    """
    luma = np.asarray(image.convert("L"), dtype=np.int32)
    inner = luma[1:-1, 1:-1]
    if not inner.size:
        return 0.0
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
    total = int(laplacian.sum(dtype=np.int64))
    squares = int(np.square(laplacian, out=laplacian).sum(dtype=np.int64))
    return round((squares * inner.size - total**2) / inner.size**2, 3)


def contrast(image: Image.Image) -> float:
    """Return the standard deviation of the luma as a share of 255: 0 for a blank image, 0.5 for black and white halves.

    It is the root-mean-square contrast of Peli, "Contrast in complex images" (1990).
    """
    counts = image.convert("L").histogram()
    pixels = sum(counts)
    total = sum(value * count for value, count in enumerate(counts))
    squares = sum(value**2 * count for value, count in enumerate(counts))
    return round(math.sqrt(squares * pixels - total**2) / pixels / 255, 6)


def phash(image: Image.Image) -> str:
    """Return a perceptual hash: 64 bits as 16 hexadecimal digits, of which similar images differ in few.

    The luma is scaled to 32 x 32 pixels by Lanczos' filter. A bit is whether one of the 8 x 8 lowest coefficients of
    its discrete cosine transform (type II) is above their median, row by row, the highest bit first. So has it
    ``imagehash.phash``, after Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010).
    """
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    cosines = _cosines()
    coefficients = np.round(cosines @ np.asarray(small, dtype=np.float64) @ cosines.T, _COMPARED_DIGITS)
    above = (coefficients > np.median(coefficients)).ravel()
    return f"{int(''.join('1' if bit else '0' for bit in above), 2):016x}"


@cache
def _cosines() -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """Return the lowest rows of the discrete cosine transform of type II, float64 (8, 32)."""
    frequency, place = np.arange(_FREQUENCIES)[:, None], np.arange(_SIDE)[None]
    return 2 * np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SIDE))
