"""Fonts for the captions of a contact sheet: Pillow's own has little more than English, others are the system's.

A character that no font has would be drawn as an empty box, the same for all. It is written as its code point instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache, cached_property
from itertools import chain, islice
from math import ceil
from pathlib import Path
from typing import cast

from PIL import Image, ImageDraw, ImageFont, features

#: pixels of a capital with its line
SIZE = 12
#: the one size of Noto's coloured emoji, which are bitmaps, and what makes them as large as letters
_COLOUR_SIZE = 109
_COLOUR_SCALE = 13 / 136
#: font files that are opened in search of one character
_MAX_TRIED = 400
#: characters of a script that are searched in vain, until no other is searched
_MAX_NOT_FOUND = 3
_FONTCONFIG_TIMEOUT_S = 5
#: folders of fonts on Linux, macOS and Windows, for systems without fontconfig
_FOLDERS = (
    "~/.local/share/fonts",
    "~/.fonts",
    "/usr/local/share/fonts",
    "/usr/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "C:/Windows/Fonts",
)
_ENDINGS = frozenset({".ttf", ".otf", ".ttc", ".otc"})
#: the joiners of scripts and emoji; no font draws them
_JOINERS = frozenset("\u200c\u200d")
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH")
#: Debian's packages by the first word of a character's name, and the one of most others
_PACKAGES = {
    **dict.fromkeys(_EAST_ASIAN, "fonts-noto-cjk"),
    **dict.fromkeys(("LATIN", "GREEK", "CYRILLIC"), "fonts-dejavu-core"),
}
_OTHER_PACKAGE = "fonts-noto-core"
_SYMBOL_PACKAGE = "fonts-noto-color-emoji"

#: a font file, and the number of the font in a collection
FontFile = tuple[str, int]


class CaptionFont:
    """An open font, which knows the characters that it has."""

    def __init__(self, font: ImageFont.FreeTypeFont) -> None:
        self._font = font
        self._scale = 1.0 if font.size == SIZE else _COLOUR_SCALE
        # without layout, which adds a dotted circle to a mark that stands alone
        self._plain = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
        # no font has a glyph for this code point: what is drawn is the box
        self._box = self._drawing("\U0010ffff")
        self._has: dict[str, bool] = {}

    def has(self, character: str) -> bool:
        """Return whether the font has a glyph for a character."""
        if character not in self._has:
            self._has[character] = self._drawing(character) != self._box
        return self._has[character]

    def length(self, text: str) -> float:
        """Return the width of a text in pixels."""
        return self._font.getlength(text) * self._scale

    def draw(self, sheet: Image.Image, place: tuple[float, float], text: str, ink: tuple[int, int, int]) -> None:
        """Draw a text whose baseline begins at ``place``."""
        if self._scale == 1:
            ImageDraw.Draw(sheet).text(place, text, ink, self._font, anchor="ls")
            return
        ascent, descent = self._font.getmetrics()
        large = Image.new("RGBA", (max(1, ceil(self._font.getlength(text))), ascent + descent))
        ImageDraw.Draw(large).text((0, ascent), text, ink, self._font, anchor="ls", embedded_color=True)
        small = large.resize((max(1, round(large.width * self._scale)), max(1, round(large.height * self._scale))))
        sheet.paste(small, (round(place[0]), round(place[1] - ascent * self._scale)), small)

    def _drawing(self, character: str) -> tuple[tuple[int, int], bytes]:
        mask = self._plain.getmask(character)
        return mask.size, bytes(mask)


class CaptionFonts:
    """The fonts of one contact sheet.

    Args:
        find: returns the font files that may have a character, the best first.
    """

    def __init__(self, find: Callable[[str], Iterable[FontFile]] | None = None) -> None:
        self._find = find or system_fonts
        self._opened: dict[FontFile, CaptionFont | None] = {}
        self._by_character: dict[str, CaptionFont | None] = {}
        self._not_found: Counter[str] = Counter()
        #: characters without a font
        self.missing: set[str] = set()

    @cached_property
    def default(self) -> CaptionFont:
        """Pillow's own font."""
        return CaptionFont(cast("ImageFont.FreeTypeFont", ImageFont.load_default(size=SIZE)))

    def length(self, text: str) -> float:
        """Return the width of a text in pixels."""
        return sum(font.length(part) for font, part in self._runs(text))

    def draw(self, sheet: Image.Image, place: tuple[float, float], text: str, ink: tuple[int, int, int]) -> None:
        """Draw a text whose baseline begins at ``place``."""
        left, baseline = place
        for font, part in self._runs(text):
            font.draw(sheet, (left, baseline), part, ink)
            left += font.length(part)

    def _runs(self, text: str) -> list[tuple[CaptionFont, str]]:
        """Split a text at changes of the font. One font is enough for most texts."""
        for font in self._fonts_of(text):
            if all(character in _JOINERS or font.has(character) for character in text if not character.isspace()):
                return [(font, text)]
        runs: list[tuple[CaptionFont, str]] = []
        for character in text:
            last = runs[-1][0] if runs else self.default
            font = last if character in _JOINERS else self._font_of(character) or self.default
            if runs and font is last:
                runs[-1] = (font, runs[-1][1] + character)
            else:
                runs.append((font, character))
        return runs

    def drawable(self, text: str) -> str:
        """Return a text whose characters all have a font. Others become their code points, as in JSON."""
        found = [""]
        for character in unicodedata.normalize("NFC", text):
            if character.isspace():
                found.append(character)
            elif character in _JOINERS:
                found.append(character if self._joins(found[-1]) else "")
            elif not _is_invisible(character):
                found.append(character if self._font_of(character) else _escaped(character))
        return "".join(found)

    def cure(self) -> str | None:
        """Return a sentence about the characters without a font, None if there are none."""
        if not self.missing:
            return None
        packages = {_package_of(character) for character in self.missing}
        shown = "".join(islice(sorted(self.missing), 8))
        return (
            f"no font here has {shown!a} of the captions ({len(self.missing)} characters), which are written as code "
            f"points; install one (Debian: {' '.join(sorted(packages))})"
        )

    def _fonts_of(self, text: str) -> list[CaptionFont]:
        """Return the fonts of a text's characters, the default first."""
        found = dict.fromkeys(self._font_of(character) for character in text if not character.isspace())
        return [self.default, *(font for font in found if font is not None and font is not self.default)]

    def _joins(self, before: str) -> bool:
        """Return whether a joiner after this character or code point has a meaning."""
        return _has_layout() and len(before) == 1 and self._font_of(before) not in {None, self.default}

    def _font_of(self, character: str) -> CaptionFont | None:
        if character.isascii():
            return self.default if character.isprintable() else None
        if character not in self._by_character:
            font = self._search(character)
            self._by_character[character] = font
            if font is None:
                self.missing.add(character)
        return self._by_character[character]

    def _search(self, character: str) -> CaptionFont | None:
        if _needs_layout(character) and not _has_layout():
            return None
        # a font that is in use already goes before a search
        for font in (self.default, *self._opened.values()):
            if font is not None and font.has(character):
                return font
        script = _script_of(character)
        if not script or self._not_found[script] >= _MAX_NOT_FOUND:
            return None
        fonts = map(self._open, islice(self._find(character), _MAX_TRIED))
        found = next((font for font in fonts if font is not None and font.has(character)), None)
        self._not_found[script] += found is None
        return found

    def _open(self, file: FontFile) -> CaptionFont | None:
        if file not in self._opened:
            name, index = file
            self._opened[file] = _open(name, index)
        return self._opened[file]


def _open(name: str, index: int) -> CaptionFont | None:
    for size in (SIZE, _COLOUR_SIZE):
        with suppress(OSError):
            return CaptionFont(ImageFont.truetype(name, size, index=index))
    return None


def system_fonts(character: str) -> Iterator[FontFile]:
    """Yield the system's font files that may have a character, the best first."""
    if shutil.which("fc-match") is None:
        yield from ((name, 0) for name in _installed())
        return
    charset, form = f"charset={ord(character):x}", "%{file}\t%{index}\n"
    for command in (["fc-match", "-f", form, f"sans-serif:{charset}"], ["fc-list", "-f", form, f":{charset}"]):
        for line in _output(command):
            name, _, index = line.partition("\t")
            if index.isdecimal():
                # the upper half is the number of a variation
                yield name, int(index) & 0xFFFF


def _output(command: list[str]) -> list[str]:
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_FONTCONFIG_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return run.stdout.splitlines()


@cache
def _installed() -> tuple[str, ...]:
    """Return the font files of the usual folders: upright sans-serif ones first."""
    folders = [Path(folder).expanduser() for folder in _FOLDERS]
    if shared := os.environ.get("XDG_DATA_HOME"):
        folders.insert(0, Path(shared) / "fonts")
    files = chain.from_iterable(folder.rglob("*") for folder in folders if folder.is_dir())
    fonts = [str(file) for file in files if file.suffix.lower() in _ENDINGS]
    return tuple(sorted(fonts, key=_rank))


def _rank(name: str) -> tuple[bool, bool, int, str]:
    stem = Path(name).stem.lower()
    styled = any(word in stem for word in ("bold", "italic", "oblique", "light", "thin", "black", "mono", "condensed"))
    return styled, "sans" not in stem and "gothic" not in stem, len(stem), name


@cache
def _has_layout() -> bool:
    """Return whether Pillow can order and join letters: it needs the system's FriBiDi."""
    return bool(features.check("raqm")) and (sys.platform != "linux" or bool(features.check("fribidi")))


def _needs_layout(character: str) -> bool:
    """Return whether letters of the character's script run from right to left or change with their neighbours."""
    code = ord(character)
    # Indic scripts to Sinhala; Tibetan and Burmese; Khmer
    joined = 0x0900 <= code <= 0x0DFF or 0x0F00 <= code <= 0x109F or 0x1780 <= code <= 0x17FF
    return joined or unicodedata.bidirectional(character) in {"R", "AL", "AN"}


def _is_invisible(character: str) -> bool:
    """Return whether a character has no glyph in any font: controls of direction, and selectors of a variation."""
    code = ord(character)
    return unicodedata.category(character) == "Cf" or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _package_of(character: str) -> str:
    if _needs_layout(character) and not _has_layout():
        return "libfribidi0"
    if unicodedata.category(character).startswith("S"):
        return _SYMBOL_PACKAGE
    return _PACKAGES.get(_script_of(character), _OTHER_PACKAGE)


def _script_of(character: str) -> str:
    """Return the first word of a character's name, mostly its script; empty for a control or an unassigned one."""
    return unicodedata.name(character, "").partition(" ")[0]
