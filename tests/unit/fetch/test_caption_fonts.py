"""Captions of contact sheets: each character in a font that has it, or as its code point."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from latentfarm.fetch import caption_fonts
from latentfarm.fetch.caption_fonts import CaptionFonts, FontFile, system_fonts
from latentfarm.fetch.contact_sheet import contact_sheet

pytestmark = pytest.mark.unit

CAT = "\N{CJK UNIFIED IDEOGRAPH-732B}"
THAI = "\N{THAI CHARACTER MO MA}\N{THAI CHARACTER SARA AE}\N{THAI CHARACTER WO WAEN}"
TILE = 192


def write_font(file: Path, characters: str) -> FontFile:
    """Write a font of black squares in the format BDF, which needs no tool; other characters are a small box."""
    glyphs = [(0, "F0 90 90 F0"), *((ord(character), "FF FF FF FF FF FF FF FF") for character in sorted(characters))]
    lines = ["STARTFONT 2.1", "FONT test", "SIZE 12 75 75", "FONTBOUNDINGBOX 8 8 0 0", "STARTPROPERTIES 6"]
    lines += [
        "PIXEL_SIZE 12",
        "FONT_ASCENT 10",
        "FONT_DESCENT 2",
        'CHARSET_REGISTRY "ISO10646"',
        'CHARSET_ENCODING "1"',
    ]
    lines += ["DEFAULT_CHAR 0", "ENDPROPERTIES", f"CHARS {len(glyphs)}"]
    for code, rows in glyphs:
        lines += [f"STARTCHAR u{code:x}", f"ENCODING {code}", "SWIDTH 666 0", "DWIDTH 8 0"]
        lines += [f"BBX 8 {len(rows.split())} 0 0", "BITMAP", *rows.split(), "ENDCHAR"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*lines, "ENDFONT", ""]))
    return str(file), 0


def nothing(_: str) -> Iterator[FontFile]:
    return iter(())


@given(st.text(max_size=30))
@example(f"{CAT} {THAI} \u0639\u0631\u0628 \U0001f469\u200d\U0001f467 a\u0301 \u200d \ufe0f\0\x7f")
def test_no_character_is_drawn_as_a_box(text: str) -> None:
    fonts = CaptionFonts(nothing)
    drawn = fonts.drawable(text)
    assert all(fonts.default.has(each) or each.isspace() for each in drawn), ascii(drawn)
    assert fonts.length(drawn) >= 0


def test_characters_without_a_font_are_code_points_and_their_packages_are_named() -> None:
    fonts = CaptionFonts(nothing)
    assert fonts.drawable(f"a {CAT}\U0001f408 b\N{VARIATION SELECTOR-16}") == "a \\u732b\\U0001f408 b"
    assert fonts.drawable(THAI) == "\\u0e21\\u0e41\\u0e27"
    cure = fonts.cure()
    assert cure is not None
    assert "(5 characters)" in cure
    assert all(name in cure for name in ("fonts-noto-cjk", "fonts-noto-core", "fonts-noto-color-emoji"))
    assert cure.isascii()


def test_a_character_is_drawn_in_the_first_font_that_has_it(tmp_path: Path) -> None:
    other, cat = write_font(tmp_path / "a", THAI), write_font(tmp_path / "b", CAT)
    (tmp_path / "broken.ttf").write_text("not a font")
    files = [(str(tmp_path / "none.ttf"), 0), (str(tmp_path / "broken.ttf"), 0), other, cat]
    fonts = CaptionFonts(lambda _: files)
    assert fonts.drawable(f"a {CAT} {THAI}") == f"a {CAT} {THAI}"
    assert fonts.cure() is None
    assert fonts.length(CAT) == 8
    assert fonts.length(f"a{CAT}{THAI[0]}") == fonts.length("a") + 16


def test_a_script_without_a_font_is_not_searched_for_every_character() -> None:
    searched: list[str] = []

    def find(character: str) -> list[FontFile]:
        searched.append(character)
        return []

    fonts = CaptionFonts(find)
    fonts.drawable("".join(map(chr, range(0x4E00, 0x4F00))))
    assert len(searched) == 3
    assert len(fonts.missing) == 256


def test_decomposed_letters_are_composed() -> None:
    fonts = CaptionFonts(nothing)
    assert fonts.drawable("e\u0301") == fonts.drawable("\u00e9")


def test_without_layout_letters_that_run_from_right_to_left_are_code_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption_fonts, "_has_layout", lambda: False)
    arabic = write_font(tmp_path / "a", "\u0639")
    fonts = CaptionFonts(lambda _: [arabic])
    assert fonts.drawable("\u0639") == "\\u0639"
    assert "libfribidi0" in (fonts.cure() or "")


def test_without_fontconfig_the_fonts_of_the_usual_folders_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NotoSans-Bold.ttf", "NotoSans-Regular.ttf", "NotoSerif-Regular.ttf", "notes.txt"):
        write_font(tmp_path / "fonts" / "deep" / name, CAT)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(caption_fonts, "_FOLDERS", ())
    caption_fonts._installed.cache_clear()
    found = [Path(name).name for name, _ in system_fonts(CAT)]
    caption_fonts._installed.cache_clear()
    assert found == ["NotoSans-Regular.ttf", "NotoSerif-Regular.ttf", "NotoSans-Bold.ttf"]


def test_fontconfig_finds_the_font_of_a_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, lines in {"fc-match": "/a.ttf\t65538\nodd line", "fc-list": "/b b.ttc\t3"}.items():
        program = tmp_path / name
        program.write_text(
            f"#!/bin/sh\n[ \"$3\" = '{':' if name == 'fc-list' else 'sans-serif:'}charset=732b' ] || exit 1\n"
            f"cat <<'END'\n{lines}\nEND\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert list(system_fonts(CAT)) == [("/a.ttf", 2), ("/b b.ttc", 3)]


def sheet_of(folder: Path, label: str, fonts: CaptionFonts) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = folder / "i.png"
    Image.new("RGB", (8, 8)).save(image)
    return np.asarray(contact_sheet([(image, label), (image, "")], fonts))


@pytest.mark.parametrize("label", [CAT * 100, "x" * 300, "word " * 100, f"{CAT} " * 90, f"a {'y' * 60} b"])
def test_a_caption_of_any_words_stays_below_its_image(tmp_path: Path, label: str) -> None:
    cat = write_font(tmp_path / "a", CAT)
    sheet = sheet_of(tmp_path, label, CaptionFonts(lambda _: [cat]))
    caption = sheet[12 + TILE : -1]
    ink = np.argwhere((caption < 128).all(axis=2))
    assert len(ink)
    assert ink[:, 1].min() >= 12
    assert ink[:, 1].max() < 12 + TILE
    assert (sheet[-3:] > 200).all(), "three lines fit"


def test_a_caption_without_a_font_is_that_of_its_code_points(tmp_path: Path) -> None:
    name = unicodedata.lookup("SNOWMAN")
    found = sheet_of(tmp_path, f"a {name}", CaptionFonts(nothing))
    assert np.array_equal(found, sheet_of(tmp_path, "a \\u2603", CaptionFonts(nothing)))
