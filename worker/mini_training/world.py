"""The synthetic world that mini is trained on: flat shapes on a flat background, drawn by code.

Coordinates are in units of the picture's side: x to the right, y downwards, both in [0, 1].
Shapes are filled polygons or discs given as signed distances (negative inside), so that edges are
antialiased at every picture size without supersampling.  Distances follow Inigo Quilez,
"2D distance functions", https://iquilezles.org/articles/distfunctions2d/ .
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]

NATIVE = 128

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 40),
    "orange": (255, 140, 0),
    "yellow": (255, 225, 50),
    "green": (30, 160, 70),
    "cyan": (60, 205, 220),
    "blue": (35, 70, 220),
    "purple": (130, 45, 170),
    "pink": (255, 130, 190),
    "white": (250, 250, 250),
    "black": (15, 15, 20),
}
PLACES: dict[str, tuple[float, float]] = {
    "centre": (0.5, 0.5),
    "left": (0.285, 0.5),
    "right": (0.715, 0.5),
    "top": (0.5, 0.285),
    "bottom": (0.5, 0.715),
}
# Half of an object's extent, as a share of the image's side.
SIZES: dict[str, tuple[float, float]] = {"small": (0.14, 0.165), "large": (0.235, 0.27)}
PAIR_RADIUS = (0.16, 0.195)
PAIR_X = (0.265, 0.735)

PLACE_JITTER = 0.012
COLOUR_JITTER = 6
TURN_JITTER = math.radians(7)

HELD_OUT_SHARE = 0.1
PAIR_SHARE = 0.18
# The share of scenes with their object in the centre, which captions then often omit.
CENTRE_SHARE = 0.36


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: shape, colour, centre, radius and rotation."""

    shape: str
    colour: str
    rgb: tuple[int, int, int]
    x: float
    y: float
    radius: float
    turn: float


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of an image. ``place`` and ``size`` are empty if there are two things."""

    background: str
    background_rgb: tuple[int, int, int]
    things: tuple[Thing, ...]
    place: str = ""
    size: str = ""

    @property
    def combination(self) -> Combination:
        """Return the five words of a scene of one thing (its first thing, if there are two)."""
        thing = self.things[0]
        return (thing.shape, thing.colour, self.background, self.place, self.size)


Combination = tuple[str, str, str, str, str]


def _segments(px: Floats, py: Floats, corners: list[tuple[float, float]]) -> Floats:
    """Return the signed distance to a closed polygon, shaped as ``px``."""
    nearest = np.full(px.shape, np.inf, dtype=np.float32)
    inside = np.zeros(px.shape, dtype=bool)
    for (ax, ay), (bx, by) in itertools.pairwise([*corners, corners[0]]):
        ex, ey = bx - ax, by - ay
        wx, wy = px - ax, py - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        nearest = np.minimum(nearest, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        if ay != by:
            inside ^= ((ay > py) != (by > py)) & (wx < ex * wy / ey)
    distance = np.sqrt(nearest)
    return np.where(inside, -distance, distance).astype(np.float32)


def _spikes(count: int, outer: float, inner: float) -> list[tuple[float, float]]:
    """Return corners that alternate between two radii, the first one straight up."""
    step = math.pi / count
    radii = [inner if i % 2 else outer for i in range(2 * count)]
    return [(r * math.sin(i * step), -r * math.cos(i * step)) for i, r in enumerate(radii)]


def _heart_outline() -> list[tuple[float, float]]:
    """Return the well-known heart curve (x = 16 sin^3 t), scaled to a half extent of about one."""
    outline = []
    for t in np.linspace(0, 2 * math.pi, 40, endpoint=False):
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        outline.append((x / 16.5, -(y + 2.5) / 16.5))
    return outline


_TRIANGLE = [(0.0, -0.95), (0.98, 0.75), (-0.98, 0.75)]
_SQUARE = [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]
_DIAMOND = [(0.0, -1.05), (0.72, 0.0), (0.0, 1.05), (-0.72, 0.0)]
_ARM = 0.3
_CROSS = [
    (-_ARM, -0.95), (_ARM, -0.95), (_ARM, -_ARM), (0.95, -_ARM), (0.95, _ARM), (_ARM, _ARM),
    (_ARM, 0.95), (-_ARM, 0.95), (-_ARM, _ARM), (-0.95, _ARM), (-0.95, -_ARM), (-_ARM, -_ARM),
]  # fmt: skip
_STAR = _spikes(5, 1.08, 0.46)
_HEART = _heart_outline()


def _circle(px: Floats, py: Floats) -> Floats:
    return (np.hypot(px, py) - 0.92).astype(np.float32)


def _ring(px: Floats, py: Floats) -> Floats:
    return (np.abs(np.hypot(px, py) - 0.73) - 0.23).astype(np.float32)


# Signed distance of each shape at unit radius, upright, centred on the origin.
SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": _circle,
    "square": lambda px, py: _segments(px, py, _SQUARE),
    "triangle": lambda px, py: _segments(px, py, _TRIANGLE),
    "star": lambda px, py: _segments(px, py, _STAR),
    "ring": _ring,
    "heart": lambda px, py: _segments(px, py, _HEART),
    "cross": lambda px, py: _segments(px, py, _CROSS),
    "diamond": lambda px, py: _segments(px, py, _DIAMOND),
}


def distance(shape: str, x: float, y: float, radius: float, turn: float, side: int) -> Floats:
    """Return each pixel's signed distance to a shape's edge in pixels, (side, side), negative inside."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    gx, gy = np.meshgrid((axis - x) / radius, (axis - y) / radius)
    c, s = math.cos(turn), math.sin(turn)
    across, down = (c * gx + s * gy).astype(np.float32), (c * gy - s * gx).astype(np.float32)
    return SHAPES[shape](across, down) * (radius * side)


def covered(distances: Floats) -> Floats:
    """Return the share of each pixel that is inside, in [0, 1], of signed distances in pixels."""
    shares: Floats = np.clip(0.5 - distances, 0.0, 1.0).astype(np.float32)
    return shares


def coverage(shape: str, x: float, y: float, radius: float, turn: float, side: int) -> Floats:
    """Return the share of each pixel that a shape covers, (side, side) in [0, 1]."""
    return covered(distance(shape, x, y, radius, turn, side))


def draw(scene: Scene, side: int = NATIVE) -> Image:
    """Draw a scene, uint8 (side, side, 3)."""
    canvas = np.empty((side, side, 3), dtype=np.float32)
    canvas[:] = scene.background_rgb
    for thing in scene.things:
        cover = coverage(thing.shape, thing.x, thing.y, thing.radius, thing.turn, side)[..., None]
        canvas += cover * (np.asarray(thing.rgb, dtype=np.float32) - canvas)
    return np.rint(canvas).astype(np.uint8)


def combinations() -> Iterator[Combination]:
    """Yield all (shape, colour, background, place, size) of a scene with one thing, in a fixed order."""
    for shape, colour, background, place, size in itertools.product(SHAPES, COLOURS, COLOURS, PLACES, SIZES):
        if colour != background:
            yield (shape, colour, background, place, size)


def is_held_out(combination: Combination) -> bool:
    """Return whether a combination is kept out of training: a stable share of all, by its SHA-256."""
    digest = hashlib.sha256("/".join(combination).encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def _shade(name: str, rng: np.random.Generator) -> tuple[int, int, int]:
    base = np.asarray(COLOURS[name]) + rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, size=3)
    red, green, blue = (int(v) for v in np.clip(base, 0, 255))
    return red, green, blue


def _thing(
    shape: str, colour: str, spot: tuple[float, float], radii: tuple[float, float], rng: np.random.Generator
) -> Thing:
    dx, dy = rng.uniform(-PLACE_JITTER, PLACE_JITTER, size=2)
    return Thing(
        shape=shape,
        colour=colour,
        rgb=_shade(colour, rng),
        x=spot[0] + float(dx),
        y=spot[1] + float(dy),
        radius=float(rng.uniform(*radii)),
        turn=float(rng.uniform(-TURN_JITTER, TURN_JITTER)),
    )


def scene_of(combination: Combination, rng: np.random.Generator) -> Scene:
    """Return a scene of a combination, its jitter drawn from ``rng``."""
    shape, colour, background, place, size = combination
    thing = _thing(shape, colour, PLACES[place], SIZES[size], rng)
    return Scene(background, _shade(background, rng), (thing,), place=place, size=size)


def _pick(names: dict[str, object] | list[str], rng: np.random.Generator) -> str:
    listed = list(names)
    return listed[int(rng.integers(len(listed)))]


def pair_scene(rng: np.random.Generator) -> Scene:
    """Return a scene with two things side by side, the left one first."""
    background = _pick(list(COLOURS), rng)
    things: list[Thing] = []
    for x in PAIR_X:
        colour = _pick([c for c in COLOURS if c != background], rng)
        things.append(_thing(_pick(list(SHAPES), rng), colour, (x, 0.5), PAIR_RADIUS, rng))
    return Scene(background, _shade(background, rng), tuple(things))


def single_scene(rng: np.random.Generator) -> Scene:
    """Return a scene with one thing whose combination is not held out."""
    while True:
        background = _pick(list(COLOURS), rng)
        colour = _pick([c for c in COLOURS if c != background], rng)
        centred = rng.random() < CENTRE_SHARE
        place = "centre" if centred else _pick([p for p in PLACES if p != "centre"], rng)
        combination = (_pick(list(SHAPES), rng), colour, background, place, _pick(list(SIZES), rng))
        if not is_held_out(combination):
            return scene_of(combination, rng)


def training_scene(rng: np.random.Generator) -> Scene:
    """Return a scene to train on: never a held-out combination."""
    return pair_scene(rng) if rng.random() < PAIR_SHARE else single_scene(rng)
