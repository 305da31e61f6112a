"""The contact sheet: a labelled grid of pictures, to see a batch at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from latentfarm.errors import InputError
from latentfarm.image_formats import PNG, format_of
from latentfarm.limits import MAX_SIDE

_TILE, _GAP, _LABEL, _LINES = 192, 12, 15, 3
_PAPER, _INK = (250, 250, 248), (40, 40, 40)
#: pictures on one sheet; more would be no glance
MAX_TILES = 48


def contact_sheet(pictures: Sequence[tuple[Path, str]]) -> Image.Image:
    """Return a grid of the pictures (at most 48), each above its label wrapped to three lines.

    Raises:
        InputError: one is not what its name's ending says, or larger than any that a job may ask for.
    """
    shown = pictures[:MAX_TILES]
    columns = min(len(shown), max(4, ceil(sqrt(len(shown))))) or 1
    rows = ceil(len(shown) / columns)
    cell_width, cell_height = _TILE + _GAP, _TILE + _LABEL * _LINES + _GAP + 4
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for place, (file, label) in enumerate(shown):
        left = _GAP + place % columns * cell_width
        top = _GAP + place // columns * cell_height
        tile = _picture(file)
        scale = _TILE / max(tile.size)
        size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
        tile = tile.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(tile, (left + (_TILE - size[0]) // 2, top + (_TILE - size[1]) // 2))
        for line, text in enumerate(_wrap(draw, font, label)):
            draw.text((left, top + _TILE + 4 + line * _LABEL), text, _INK, font)
    return sheet


def _picture(file: Path) -> Image.Image:
    """Return a picture; what it says of its size is looked at before anything is decoded."""
    made = format_of(file.name) or PNG
    try:
        with Image.open(file, formats=[made.pillow]) as picture:
            if picture.width * picture.height > MAX_SIDE * MAX_SIDE:
                raise InputError(f"{file} says {picture.width}x{picture.height} pixels, which no job makes; delete it")
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} is no picture of ours ({error}); delete it and fetch again") from None


def _wrap(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, label: str) -> list[str]:
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= _TILE:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line][:_LINES]
