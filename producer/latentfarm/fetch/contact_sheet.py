"""Contact sheets: labelled grids of a batch's first images."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from latentfarm.errors import InputError
from latentfarm.fetch.report import MAX_SHEET_IMAGES
from latentfarm.image_formats import PNG, format_of
from latentfarm.limits import MAX_SIDE

_TILE, _GAP, _LABEL, _LINES = 192, 12, 15, 3
_PAPER, _INK = (250, 250, 248), (40, 40, 40)


def contact_sheet(images: Sequence[tuple[Path, str]]) -> Image.Image:
    """Return a grid of the first 48 images, each above its label, wrapped to three lines.

    Raises:
        InputError: an image is not of the format that its extension names, or larger than any job's.
    """
    shown = images[:MAX_SHEET_IMAGES]
    columns = min(len(shown), max(4, ceil(sqrt(len(shown))))) or 1
    rows = ceil(len(shown) / columns)
    cell_width, cell_height = _TILE + _GAP, _TILE + _LABEL * _LINES + _GAP + 4
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for place, (file, label) in enumerate(shown):
        left = _GAP + place % columns * cell_width
        top = _GAP + place // columns * cell_height
        tile = _read_image(file)
        scale = _TILE / max(tile.size)
        size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
        tile = tile.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(tile, (left + (_TILE - size[0]) // 2, top + (_TILE - size[1]) // 2))
        for line, text in enumerate(_wrap(draw, font, label)):
            draw.text((left, top + _TILE + 4 + line * _LABEL), text, _INK, font)
    return sheet


def _read_image(file: Path) -> Image.Image:
    expected = format_of(file.name) or PNG
    try:
        with Image.open(file, formats=[expected.pillow]) as image:
            # checked before decoding: a small file could expand to gigabytes
            if image.width * image.height > MAX_SIDE * MAX_SIDE:
                raise InputError(f"{file} has {image.width}x{image.height} pixels, more than any job; delete it")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} is not an image of latentfarm ({error}); delete it and fetch again") from None


def _wrap(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, label: str) -> list[str]:
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= _TILE:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line][:_LINES]
