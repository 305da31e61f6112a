"""Contact sheets: labelled grids of a batch's first images."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path

from PIL import Image

from latentfarm.errors import InputError
from latentfarm.fetch.caption_fonts import CaptionFonts
from latentfarm.fetch.report import MAX_SHEET_IMAGES
from latentfarm.image_formats import PNG, format_of
from latentfarm.limits import MAX_SIDE

_TILE, _GAP, _LABEL, _LINES = 192, 12, 15, 3
#: characters of a label that are read: more do not fit
_MAX_LABEL = 400
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_PAPER, _INK = (250, 250, 248), (40, 40, 40)


def contact_sheet(images: Sequence[tuple[Path, str]], fonts: CaptionFonts | None = None) -> Image.Image:
    """Return a grid of the first 48 images, each above its label, wrapped to three lines.

    ``fonts.cure()`` then reports the characters of labels that no font has.

    Raises:
        InputError: an image is not of the format that its extension names, or larger than any job's.
    """
    shown = images[:MAX_SHEET_IMAGES]
    columns = min(len(shown), max(4, ceil(sqrt(len(shown))))) or 1
    rows = ceil(len(shown) / columns)
    cell_width, cell_height = _TILE + _GAP, _TILE + _LABEL * _LINES + _GAP + 4
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), _PAPER)
    fonts = fonts or CaptionFonts()
    for place, (file, label) in enumerate(shown):
        left = _GAP + place % columns * cell_width
        top = _GAP + place // columns * cell_height
        tile = _read_image(file)
        scale = _TILE / max(tile.size)
        size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
        tile = tile.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(tile, (left + (_TILE - size[0]) // 2, top + (_TILE - size[1]) // 2))
        for line, text in enumerate(_wrap(fonts, label)):
            fonts.draw(sheet, (left, top + _TILE + _LABEL + line * _LABEL), text, _INK)
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


def _wrap(fonts: CaptionFonts, label: str) -> list[str]:
    """Break a label into up to three lines at spaces, and inside words that are wider than an image."""
    lines = [""]
    words = fonts.drawable(label[:_MAX_LABEL]).split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if fonts.length(longer) <= _TILE:
            lines[-1] = longer
            continue
        lines += _broken(fonts, word) if fonts.length(word) > _TILE else [word]
        if len(lines) > _LINES + 1:
            break
    found = [line for line in lines if line]
    if len(found) > _LINES or len(label) > _MAX_LABEL:
        found[_LINES - 1 :] = [_cut(fonts, found[min(_LINES, len(found)) - 1])]
    return found


def _broken(fonts: CaptionFonts, word: str) -> list[str]:
    """Break a word into lines. A mark stays with its letter."""
    parts = [""]
    for character in word:
        fits = fonts.length(parts[-1] + character) <= _TILE
        if fits or unicodedata.category(character).startswith("M"):
            parts[-1] += character
        elif len(parts) > _LINES:
            break
        else:
            parts.append(character)
    return parts


def _cut(fonts: CaptionFonts, line: str) -> str:
    """Return a line with an ellipsis at its end."""
    while line and fonts.length(f"{line}{_ELLIPSIS}") > _TILE:
        line = line[:-1]
    return f"{line}{_ELLIPSIS}"
