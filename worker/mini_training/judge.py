"""Recognize the objects in an image of mini's world, by plain geometry; nothing here is learned.

The background is the colour of the image's rim.  What differs from it is split into connected
blobs.  A blob's colour is the median of its pixels, its place the nearest of the five, its shape the
one whose drawn outline, moved to the same centre and scaled to the same area, overlaps it best.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mini_training import world

Mask = NDArray[np.bool_]

UNKNOWN = ""
FAR_COLOUR = 90.0
# Colours of one image are at least this far apart; smaller differences are noise.
STEP = 40.0
SMALLEST_BLOB = 0.004
WORST_MATCH = 0.6
# Half way between the largest small radius and the smallest large one.
SIZE_EDGE = (world.SIZES["small"][1] + world.SIZES["large"][0]) / 2

_GRID = 48
# Side of the frame that blobs are compared in, in square roots of their area.
_FRAME = 2.4
_TURNS = tuple(math.radians(d) for d in (-8, -4, 0, 4, 8))


@dataclass(frozen=True, slots=True)
class Seen:
    """One object as the judge recognizes it; unknown words are empty."""

    colour: str
    shape: str
    place: str
    size: str
    match: float
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The content of an image: its background, and its objects from left to right."""

    background: str
    things: tuple[Seen, ...]

    @property
    def thing(self) -> Seen:
        """Return the biggest object, or an unknown one if there is none."""
        nothing = Seen(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, 0.0, 0.0, 0.0, 0.0)
        return max(self.things, key=lambda seen: seen.radius, default=nothing)


def nearest_colour(rgb: NDArray[np.float32]) -> str:
    """Return the named colour nearest to an RGB value; empty if all are far from it."""
    names = list(world.COLOURS)
    gaps = np.linalg.norm(np.asarray(list(world.COLOURS.values()), dtype=np.float32) - rgb, axis=1)
    best = int(gaps.argmin())
    return names[best] if gaps[best] <= FAR_COLOUR else UNKNOWN


def rim(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the median colour of the outermost pixels."""
    edge = max(1, image.shape[0] // 32)
    sides = (image[:edge], image[-edge:], image[:, :edge], image[:, -edge:])
    median: NDArray[np.float32] = np.median(np.concatenate([s.reshape(-1, 3) for s in sides]), axis=0)
    return median.astype(np.float32)


def blobs(mask: Mask) -> Iterator[Mask]:
    """Return the 4-connected parts of a mask, biggest first."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        around = np.maximum.reduce(
            [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        )
        grown = np.where(mask, around, 0)
        # Jump to the label's own label: long thin parts then need few rounds.
        flat = np.concatenate([[0], grown.ravel()])
        grown = flat[grown]
        if np.array_equal(grown, labels):
            break
        labels = grown
    names, counts = np.unique(labels[mask], return_counts=True)
    for name in names[np.argsort(-counts, kind="stable")]:
        yield labels == name


def framed(mask: Mask) -> Mask:
    """Return a blob moved to the middle of a small grid and scaled to a fixed area: (48, 48)."""
    rows, columns = np.nonzero(mask)
    reach = math.sqrt(rows.size) * _FRAME / 2
    axis = (np.arange(_GRID) + 0.5) / _GRID * 2 - 1
    y = np.rint(rows.mean() + axis * reach).astype(int)
    x = np.rint(columns.mean() + axis * reach).astype(int)
    inside = ((y >= 0) & (y < mask.shape[0]))[:, None] & ((x >= 0) & (x < mask.shape[1]))[None, :]
    taken = mask[np.clip(y, 0, mask.shape[0] - 1)[:, None], np.clip(x, 0, mask.shape[1] - 1)[None, :]]
    result: Mask = taken & inside
    return result


@functools.cache
def _outlines() -> tuple[list[str], NDArray[np.bool_]]:
    """Return the framed shapes in a few turns, and the name of each: (N, 48, 48)."""
    names, grids = [], []
    for shape in world.SHAPES:
        for turn in _TURNS:
            names.append(shape)
            grids.append(framed(world.coverage(shape, 0.5, 0.5, 0.33, turn, 160) > 0.5))
    return names, np.stack(grids)


@functools.cache
def _unit_area(shape: str) -> float:
    """Return a shape's area at radius one."""
    return float(world.coverage(shape, 0.5, 0.5, 0.4, 0.0, 400).mean()) / 0.4**2


def name_shape(mask: Mask) -> tuple[str, float]:
    """Return the best matching shape of a blob and its overlap (intersection over union)."""
    names, grids = _outlines()
    blob = framed(mask)
    both = (grids & blob).sum(axis=(1, 2))
    either = (grids | blob).sum(axis=(1, 2))
    overlap = both / either
    best = int(overlap.argmax())
    return (names[best] if overlap[best] >= WORST_MATCH else UNKNOWN), float(overlap[best])


def _see(image: NDArray[np.float32], blob: Mask, ground: NDArray[np.float32]) -> Seen:
    """Measure one blob of an image."""
    far = np.linalg.norm(image - ground, axis=-1)
    core = blob & (far >= np.median(far[blob]) * 0.8)
    tint = np.median(image[core], axis=0).astype(np.float32)
    # Half way between the two colours is where the outline runs.
    axis = tint - ground
    # A blob of many colours may have the background's as its median; the axis is then zero.
    along = (image - ground) @ axis / (float(axis @ axis) or 1.0)
    rows, columns = np.nonzero(blob)
    near = np.zeros_like(blob)
    near[max(rows.min() - 2, 0) : rows.max() + 3, max(columns.min() - 2, 0) : columns.max() + 3] = True
    body = next(blobs((along > 0.5) & near), blob)
    shape, match = name_shape(body)
    rows, columns = np.nonzero(body)
    height, width = body.shape
    x = float(columns.min() + columns.max() + 1) / 2 / width
    y = float(rows.min() + rows.max() + 1) / 2 / height
    area = rows.size / (height * width)
    radius = math.sqrt(area / _unit_area(shape or "circle"))
    place = min(world.PLACES, key=lambda p: math.dist(world.PLACES[p], (x, y)))
    size = "small" if radius < SIZE_EDGE else "large"
    return Seen(nearest_colour(tint), shape, place, size, match, x, y, radius)


def judge(image: world.Image) -> Verdict:
    """Return the content of an image, uint8 (H, W, 3)."""
    values = image.astype(np.float32)
    ground = rim(values)
    mask = np.linalg.norm(values - ground, axis=-1) > STEP
    found: list[Seen] = []
    for blob in blobs(mask):
        if blob.mean() < SMALLEST_BLOB or len(found) == 4:
            break
        found.append(_see(values, blob, ground))
    return Verdict(nearest_colour(ground), tuple(sorted(found, key=lambda seen: seen.x)))


def matches(verdict: Verdict, combination: world.Combination) -> dict[str, bool]:
    """Return by word whether the image's object matches a combination."""
    shape, colour, background, place, size = combination
    seen = verdict.thing
    return {
        "background": verdict.background == background,
        "colour": seen.colour == colour,
        "shape": seen.shape == shape,
        "place": seen.place == place,
        "size": seen.size == size,
        "one object": len(verdict.things) == 1,
    }


def pair_matches(verdict: Verdict, scene: world.Scene) -> dict[str, bool]:
    """Return by property whether two objects match a scene, the left one first."""
    seen = verdict.things
    two = len(seen) == 2
    return {
        "background": verdict.background == scene.background,
        "two objects": two,
        "colours": two and all(s.colour == t.colour for s, t in zip(seen, scene.things, strict=True)),
        "shapes": two and all(s.shape == t.shape for s, t in zip(seen, scene.things, strict=True)),
    }
