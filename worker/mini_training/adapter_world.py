"""Draw scenes in the styles that mini's adapters add: outlined, striped, nested.

Lengths are shares of the image's side, as in ``world``. An accent is the colour of outlines and stripes; it follows
from the object's and the background's colours alone, so that a denoiser can know it from the caption.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mini_training import world
from mini_training.world import Floats, Image, Scene, Thing

OUTLINE = 0.055
STRIPE = 0.095
# Radius of the inner copy of a nested object, as a share of the outer one's.
INNER = 0.5


_ACCENTS = ("black", "white", "red")


def accent(colour: str, background: str) -> str:
    """Return the first of black, white and red that is neither the object's colour nor the background's."""
    return next(name for name in _ACCENTS if name not in {colour, background})


def style_scenes(count: int, seed: int, rare_share: float = 0.0) -> list[Scene]:
    """Return scenes to train a style on. In ``rare_share`` of them, and some others, the accent is not black."""
    rng = np.random.default_rng([seed, 6])
    scenes = []
    for _ in range(count):
        scene = world.training_scene(rng)
        if rare_share and rng.random() < rare_share:
            while accent(scene.things[0].colour, scene.background) == "black":
                scene = world.training_scene(rng)
        scenes.append(scene)
    return scenes


def _paint(canvas: Floats, cover: Floats, rgb: tuple[int, int, int]) -> None:
    canvas += cover[..., None] * (np.asarray(rgb, dtype=np.float32) - canvas)


def _outlined(canvas: Floats, thing: Thing, scene: Scene) -> None:
    side = canvas.shape[0]
    edge = world.distance(thing.shape, thing.x, thing.y, thing.radius, thing.turn, side)
    _paint(canvas, world.covered(edge - OUTLINE * side), world.COLOURS[accent(thing.colour, scene.background)])
    _paint(canvas, world.covered(edge), thing.rgb)


def _striped(canvas: Floats, thing: Thing, scene: Scene) -> None:
    side = canvas.shape[0]
    cover = world.coverage(thing.shape, thing.x, thing.y, thing.radius, thing.turn, side)
    _paint(canvas, cover, world.COLOURS[accent(thing.colour, scene.background)])
    # Horizontal stripes; the one through the object's centre has its own colour.
    across = (((np.arange(side, dtype=np.float32) + 0.5) / side - thing.y) / STRIPE + 0.5) % 2.0
    beyond = np.where(across < 1, -np.minimum(across, 1 - across), np.minimum(across - 1, 2 - across))
    own = world.covered((beyond * STRIPE * side).astype(np.float32))
    _paint(canvas, cover * own[:, None], thing.rgb)


def _nested(canvas: Floats, thing: Thing, scene: Scene) -> None:
    side = canvas.shape[0]
    _paint(canvas, world.coverage(thing.shape, thing.x, thing.y, thing.radius, thing.turn, side), thing.rgb)
    inner = world.coverage(thing.shape, thing.x, thing.y, thing.radius * INNER, thing.turn, side)
    _paint(canvas, inner, scene.background_rgb)


STYLES: dict[str, Callable[[Floats, Thing, Scene], None]] = {
    "outlined": _outlined,
    "striped": _striped,
    "nested": _nested,
}


def draw(style: str, scene: Scene, side: int = world.NATIVE) -> Image:
    """Draw a scene in a style, uint8 (side, side, 3)."""
    canvas = np.empty((side, side, 3), dtype=np.float32)
    canvas[:] = scene.background_rgb
    for thing in scene.things:
        STYLES[style](canvas, thing, scene)
    image: Image = np.rint(canvas).astype(np.uint8)
    return image
