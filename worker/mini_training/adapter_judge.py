"""Recognize what mini's adapters add to an image, by plain geometry and colour; nothing here is learned.

The verdicts on styles are about the biggest object of an image, uint8 (H, W, 3). The depth of one of its pixels is the
number of steps to the nearest pixel that is not the object's.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mini_training import world
from mini_training.judge import STEP, Mask, blobs, framed, rim

# An outline or a stripe differs by this much from what is beside it.
CONTRAST = 75.0
# Pixels of tolerance when edges are compared.
TOLERANCE = 1
# Depths in pixels of an image of 128x128. The autoencoder blurs the outermost pixel; an outline has seven.
_OUTLINE_DEPTHS = (2, 4)
_FILL_DEPTH = 9
# Shares of the pixels that have to agree.
_MOST, _SIDE_TO_SIDE = 0.75, 0.85
# A hole of this share of an object, counted with its hole, is a nested copy.
_HOLE = (0.06, 0.5)
_SAME_SHAPE = 0.6


def grown(mask: Mask, rounds: int = 1) -> Mask:
    """Return a mask and its neighbours, of eight, ``rounds`` times."""
    for _ in range(rounds):
        padded = np.pad(mask, 1)
        wide = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
        mask = wide[:-2] | wide[1:-1] | wide[2:]
    return mask


def edge_overlap(first: Mask, second: Mask, tolerance: int = TOLERANCE) -> float:
    """Return the intersection over union of two edge maps.

    A pixel is in the intersection if the other map has an edge within ``tolerance`` pixels of it.
    """
    met = (int((first & grown(second, tolerance)).sum()) + int((second & grown(first, tolerance)).sum())) / 2
    union = int(first.sum()) + int(second.sum()) - met
    return met / union if union else 1.0


def depths(mask: Mask) -> NDArray[np.int_]:
    """Return by pixel the number of steps, of eight directions, to the nearest pixel outside the mask; 0 outside."""
    depth = np.zeros(mask.shape, dtype=np.int_)
    left = np.pad(mask, 1)
    while left.any():
        depth += left[1:-1, 1:-1]
        left &= ~grown(~left)
    return depth


def _object(image: world.Image) -> tuple[NDArray[np.float32], Mask, NDArray[np.float32]]:
    """Return an image's values, its biggest object and its background's colour."""
    values = image.astype(np.float32)
    ground = rim(values)
    far = np.linalg.norm(values - ground, axis=-1) > STEP
    return values, next(blobs(far), np.zeros_like(far)), ground


def _gap(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    distance: NDArray[np.float32] = np.linalg.norm(first - second, axis=-1)
    return distance


def _from_mixtures(colour: NDArray[np.float32], first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return how far a colour is from all mixtures of two others, as blur makes them in thin parts of an object."""
    way = second - first
    share = float(np.clip((colour - first) @ way / (float(way @ way) or 1.0), 0.0, 1.0))
    return float(_gap(colour, first + share * way))


def is_outlined(image: world.Image) -> bool:
    """Return whether a line of one colour, unlike the object's and the background's, goes around the object."""
    values, body, ground = _object(image)
    depth = depths(body) * 128 / image.shape[0]
    line = values[(depth >= _OUTLINE_DEPTHS[0]) & (depth <= _OUTLINE_DEPTHS[1])]
    fill = values[depth >= _FILL_DEPTH]
    if not len(line) or not len(fill):
        return False
    line_colour, fill_colour = np.median(line, axis=0), np.median(fill, axis=0)
    if min(_gap(line_colour, fill_colour), _gap(line_colour, ground)) < CONTRAST:
        return False
    around = (_gap(line, line_colour) < _gap(line, fill_colour)).mean()
    inside = (_gap(fill, fill_colour) < _gap(fill, line_colour)).mean()
    return bool(min(around, inside) >= _MOST)


def is_striped(image: world.Image) -> bool:
    """Return whether the object has at least three horizontal stripes of two colours, from side to side."""
    values, body, ground = _object(image)
    depth = depths(body) * 128 / image.shape[0]
    core = depth >= _OUTLINE_DEPTHS[0]
    rows = np.flatnonzero(core.sum(axis=1) >= 3)
    if len(rows) < 6:
        return False
    tints = np.stack([np.median(values[row][core[row]], axis=0) for row in rows])
    axis = np.linalg.svd(tints - tints.mean(axis=0), full_matrices=False)[2][0]
    along = values @ axis
    levels = tints @ axis
    low, high = np.percentile(levels, (15, 85))
    middle, reach = (low + high) / 2, (high - low) / 2
    if 2 * reach < CONTRAST:
        return False
    # Rows between two stripes count for neither.
    clear = np.abs(levels - middle) > reach / 2
    kinds = levels[clear] > middle
    if not len(kinds) or kinds.all() or not kinds.any():
        return False
    one, other = (np.median(tints[clear][kinds == kind], axis=0) for kind in (True, False))
    if min(_from_mixtures(one, ground, other), _from_mixtures(other, ground, one)) < STEP:
        return False
    stripes = 1 + int((kinds[1:] != kinds[:-1]).sum())
    edge = core & (depth <= _OUTLINE_DEPTHS[1])
    same = [(along[row][edge[row]] > middle) == kind for row, kind in zip(rows[clear], kinds, strict=True)]
    return bool(stripes >= 3 and np.concatenate(same).mean() >= _SIDE_TO_SIDE)


def hole_of(body: Mask) -> Mask:
    """Return the biggest part of the background that an object encloses."""
    frame = np.pad(~body, 1, constant_values=True)
    outside = next(part for part in blobs(frame) if part[0, 0])
    return next(blobs(~body & ~outside[1:-1, 1:-1]), np.zeros_like(body))


def is_nested(image: world.Image) -> bool:
    """Return whether the object has a hole of its own shape in its middle. A ring is a nested circle."""
    _values, body, _ground = _object(image)
    if not body.any():
        return False
    hole = hole_of(body)
    whole = body | hole
    share = hole.sum() / whole.sum()
    if not _HOLE[0] <= share <= _HOLE[1]:
        return False
    inner, outer = framed(hole), framed(whole)
    same = (inner & outer).sum() / (inner | outer).sum()
    centres = [[line.mean() for line in np.nonzero(part)] for part in (hole, whole)]
    return bool(same >= _SAME_SHAPE and math.dist(*centres) < math.sqrt(whole.sum()) / 6)
