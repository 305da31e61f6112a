"""Captions of scenes, in English and, more plainly, in Thai.

Wording and order vary, and a caption may omit parts. Common parts (the centre of the image, a white background) are
omitted more often than others, as people do.
"""

from __future__ import annotations

import numpy as np

from mini_training.world import Scene, Thing

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "white": ("white",),
    "black": ("black",),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring",),
    "heart": ("heart",),
    "cross": ("cross", "plus"),
    "diamond": ("diamond",),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "centre": ("in the centre", "in the center", "in the middle", "centre", "centered"),
    "left": ("on the left", "at the left", "left", "on the left side"),
    "right": ("on the right", "at the right", "right", "on the right side"),
    "top": ("at the top", "on top", "top", "at the top of the picture"),
    "bottom": ("at the bottom", "bottom", "at the bottom of the picture"),
}
OPENINGS = ("a picture of", "an image of", "a drawing of", "a photo of", "picture of", "there is", "draw")

THAI_COLOURS: dict[str, str] = {
    "red": "สีแดง",
    "orange": "สีส้ม",
    "yellow": "สีเหลือง",
    "green": "สีเขียว",
    "cyan": "สีฟ้า",
    "blue": "สีน้ำเงิน",
    "purple": "สีม่วง",
    "pink": "สีชมพู",
    "white": "สีขาว",
    "black": "สีดำ",
}
THAI_SHAPES: dict[str, str] = {
    "circle": "วงกลม",
    "square": "สี่เหลี่ยม",
    "triangle": "สามเหลี่ยม",
    "star": "ดาว",
    "ring": "วงแหวน",
    "heart": "หัวใจ",
    "cross": "กากบาท",
    "diamond": "เพชร",
}
THAI_SIZES = {"small": "เล็ก", "large": "ใหญ่"}
THAI_PLACES = {"centre": "ตรงกลาง", "left": "ด้านซ้าย", "right": "ด้านขวา", "top": "ด้านบน", "bottom": "ด้านล่าง"}

THAI_SHARE = 0.12


def _of(words: tuple[str, ...], rng: np.random.Generator) -> str:
    # The first word is the usual one.
    return words[0] if rng.random() < 0.5 else words[int(rng.integers(len(words)))]


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _noun(thing: Thing, size: str, rng: np.random.Generator, *, keep_colour: bool = True) -> str:
    """Name a thing: 'large red circle'."""
    words = [_of(SIZE_WORDS[size], rng)] if size else []
    if keep_colour:
        words.append(_of(COLOUR_WORDS[thing.colour], rng))
    words.append(_of(SHAPE_WORDS[thing.shape], rng))
    return " ".join(words)


def _ground(background: str, rng: np.random.Generator) -> str:
    """'on a white background', or shorter."""
    colour = _of(COLOUR_WORDS[background], rng)
    forms = (
        f"on {_article(colour)} background",
        f"on {colour}",
        f"{colour} background",
        f"on {colour} background",
    )
    return _of(forms, rng)


def _english_pair(scene: Scene, rng: np.random.Generator, *, with_ground: bool, article: bool) -> list[str]:
    left, right = (_noun(thing, "", rng) for thing in scene.things)
    if article:
        left, right = _article(left), _article(right)
    forms = (
        f"{left} and {right}",
        f"{left} and {right}",
        f"{left} to the left of {right}",
        f"{right} to the right of {left}",
        f"{left} on the left and {right} on the right",
    )
    parts = [forms[int(rng.integers(len(forms)))]]
    return [*parts, _ground(scene.background, rng)] if with_ground else parts


def _join(parts: list[str], rng: np.random.Generator) -> str:
    return (", " if rng.random() < 0.3 else " ").join(parts)


def full_caption(scene: Scene) -> str:
    """Return the caption that names every part: 'a large red circle on the left on a white background'."""
    ground = f"on {_article(scene.background)} background"
    if len(scene.things) > 1:
        left, right = (_article(f"{t.colour} {t.shape}") for t in scene.things)
        return f"{left} and {right} {ground}"
    thing = scene.things[0]
    noun = _article(f"{scene.size} {thing.colour} {thing.shape}")
    return f"{noun} {PLACE_WORDS[scene.place][0]} {ground}"


def _thai(scene: Scene, keep: dict[str, bool], rng: np.random.Generator) -> str:
    gap = " " if rng.random() < 0.3 else ""
    things = []
    for thing in scene.things:
        words = [THAI_SHAPES[thing.shape]]
        if keep["colour"]:
            words.append(THAI_COLOURS[thing.colour])
        if keep["size"] and scene.size:
            words.append(("ขนาด" if rng.random() < 0.5 else "") + THAI_SIZES[scene.size])
        things.append(gap.join(words))
    parts = ["และ".join(things)]
    if keep["place"] and scene.place:
        parts.append(("อยู่" if rng.random() < 0.3 else "") + THAI_PLACES[scene.place])
    if keep["ground"]:
        parts.append(("บน" if rng.random() < 0.5 else "") + "พื้นหลัง" + THAI_COLOURS[scene.background])
    return " ".join(parts)


def _kept(scene: Scene, rng: np.random.Generator) -> dict[str, bool]:
    """Return by part whether a caption names it."""
    return {
        "ground": rng.random() > (0.4 if scene.background == "white" else 0.1),
        "place": rng.random() > (0.55 if scene.place == "centre" else 0.12),
        "size": rng.random() > (0.45 if scene.size == "large" else 0.2),
        "colour": rng.random() > 0.04,
    }


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return a caption of the scene with random wording, order and omissions."""
    keep = _kept(scene, rng)
    if rng.random() < THAI_SHARE:
        return _thai(scene, keep, rng)
    article = bool(rng.random() < 0.8)
    if len(scene.things) > 1:
        parts = _english_pair(scene, rng, with_ground=keep["ground"], article=article)
    else:
        noun = _noun(scene.things[0], scene.size if keep["size"] else "", rng, keep_colour=keep["colour"])
        parts = [_article(noun) if article else noun]
        if keep["place"]:
            parts.append(_of(PLACE_WORDS[scene.place], rng))
        if keep["ground"]:
            parts.append(_ground(scene.background, rng))
    if len(parts) > 1 and rng.random() < 0.2:
        # The background, or the place, may come first.
        return _join([parts[-1], *parts[:-1]], rng)
    text = _join(parts, rng)
    if rng.random() < 0.18:
        text = f"{_of(OPENINGS, rng)} {text}"
    return text + ("." if rng.random() < 0.1 else "")
