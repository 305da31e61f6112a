"""Canny's edges of an image (IEEE PAMI 8(6), 1986), to the bit those of OpenCV's ``Canny`` with its defaults.

Nets for edges were trained with OpenCV's. Its package has 60 MB, and this is all that the farm needs of it. All numbers
are integers, so every processor has the same edges.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: those of the nets' own examples
LOW, HIGH = 100, 200
#: tan(22.5 degrees) with 15 bits, which OpenCV compares directions with
_TAN_22 = 13573
_NEIGHBOURS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))

Integers = npt.NDArray[np.int32]


def canny(image: npt.NDArray[np.uint8], low: int = LOW, high: int = HIGH) -> npt.NDArray[np.bool_]:
    """Return which pixels are on an edge, bool (H, W).

    Args:
        image: uint8 (H, W, 3).
        low: the threshold of ``|dx| + |dy|`` above which a line goes on.
        high: that above which it begins.
    """
    x, y = _gradient(image)
    size = np.abs(x) + np.abs(y)
    ridge = (size > low) & _is_largest(size, x, y)
    return _connected(ridge, ridge & (size > high))


def _gradient(image: npt.NDArray[np.uint8]) -> tuple[Integers, Integers]:
    """Return Sobel's derivatives of each pixel, of the channel with the largest."""
    padded = np.pad(image.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    x, y = across[:, 2:] - across[:, :-2], down[2:] - down[:-2]
    largest = (np.abs(x) + np.abs(y)).argmax(axis=2)[..., None]
    return np.take_along_axis(x, largest, axis=2)[..., 0], np.take_along_axis(y, largest, axis=2)[..., 0]


def _is_largest(size: Integers, x: Integers, y: Integers) -> npt.NDArray[np.bool_]:
    """Return where the gradient is larger than at both neighbours in its direction, of four directions."""
    padded = np.pad(size, 1)
    height, width = size.shape

    def at(down: int, right: int) -> Integers:
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    run, rise = np.abs(x).astype(np.int64), np.abs(y).astype(np.int64) << 15
    shallow, steep = run * _TAN_22, run * _TAN_22 + (run << 16)
    horizontal = (size > at(0, -1)) & (size >= at(0, 1))
    vertical = (size > at(-1, 0)) & (size >= at(1, 0))
    rising = (size > at(-1, 1)) & (size > at(1, -1))
    falling = (size > at(-1, -1)) & (size > at(1, 1))
    diagonal = np.where((x ^ y) < 0, rising, falling)
    return np.where(rise < shallow, horizontal, np.where(rise > steep, vertical, diagonal))


def _connected(ridge: npt.NDArray[np.bool_], strong: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels of the ridge that are strong or reach a strong one by steps to any of eight neighbours."""
    # a border, so that a step never leaves the array
    free = np.pad(ridge & ~strong, 1).ravel()
    found = np.pad(strong, 1).ravel()
    width = ridge.shape[1] + 2
    steps = np.array([down * width + right for down, right in _NEIGHBOURS])
    ends = np.flatnonzero(found)
    while ends.size:
        reached = (ends[:, None] + steps).ravel()
        ends = np.unique(reached[free[reached]])
        free[ends], found[ends] = False, True
    return found.reshape(-1, width)[1:-1, 1:-1]
