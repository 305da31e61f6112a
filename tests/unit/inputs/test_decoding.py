"""Input images are decoded as they are shown: rotated, in sRGB, on white; what cannot be decoded has a cure."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from latentfarm.errors import InputError
from latentfarm.inputs.checks import check_image
from latentfarm.inputs.decoding import decode_image, decode_mask
from latentfarm.limits import MAX_INPUT_BYTES, MAX_INPUT_PIXELS, MAX_INPUT_SIDE

pytestmark = pytest.mark.unit

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)

# made once: it has the time
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(mode: str = "RGB") -> Image.Image:
    """Return 24x16 pixels that all differ."""
    image = Image.new("RGB", (24, 16))
    image.putdata([(x * 10, y * 15, (x + y) * 6) for y in range(16) for x in range(24)])
    return image.convert(mode)


def png(width: int, height: int, *, depth: int = 8, color: int = 0, rows: bytes = b"") -> bytes:
    """Return a PNG with any header."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_samples_of_a_lossless_file_are_kept(kind: str, options: dict[str, Any]) -> None:
    found = decode_image(encoded(gradient(), kind, **options))
    assert found.mode == "RGB"
    assert found.tobytes() == gradient().tobytes()


def test_a_jpeg_is_decoded_as_pillow_does() -> None:
    data = encoded(gradient(), "JPEG", quality=90)
    assert decode_image(data).tobytes() == Image.open(io.BytesIO(data)).tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(kind: str, orientation: int) -> None:
    image = Image.new("RGB", (32, 16), BLUE)
    image.paste(RED, (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif.tobytes(), **({} if kind == "PNG" else {"quality": 100}))
    size = (32, 16) if orientation < 5 else (16, 32)
    found = decode_image(data)
    assert found.size == check_image(data) == size
    # where a viewer shows the corner that was above and to the left
    right = orientation in {2, 3, 6, 7}
    below = orientation in {3, 4, 7, 8}
    corner = found.getpixel((size[0] - 3 if right else 2, size[1] - 3 if below else 2))
    assert isinstance(corner, tuple)
    assert corner[0] > 200
    assert found.info == {}


@pytest.mark.parametrize(("alpha", "expected"), [(0, WHITE), (255, RED), (128, (255, 127, 127))])
def test_alpha_is_composited_on_white(alpha: int, expected: tuple[int, int, int]) -> None:
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        data = encoded(Image.new("RGBA", (4, 4), (*RED, alpha)), kind, **options)
        assert decode_image(data).getpixel((1, 1)) == expected


def test_transparent_colors_and_grey_with_alpha_are_composited() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([*RED, *BLUE])
    assert decode_image(encoded(palette, transparency=1)).getpixel((0, 0)) == WHITE
    assert decode_image(encoded(palette)).getpixel((0, 0)) == BLUE
    assert decode_image(encoded(Image.new("LA", (4, 4), (9, 0)))).getpixel((0, 0)) == WHITE
    assert decode_image(encoded(Image.new("1", (4, 4), 1))).getpixel((0, 0)) == WHITE


def test_transparent_parts_of_a_mask_are_kept() -> None:
    assert decode_mask(encoded(Image.new("RGBA", (4, 4), (*WHITE, 0)))).tobytes() == bytes(16)
    found = decode_mask(encoded(Image.new("L", (4, 4), 200)))
    assert (found.mode, found.tobytes()) == ("L", bytes([200] * 16))


def test_sixteen_bits_keep_the_upper_eight() -> None:
    grey = Image.new("I;16", (2, 1))
    grey.putdata([0x1234, 0xFFFF])
    assert decode_image(encoded(grey)).tobytes() == bytes([0x12] * 3 + [255] * 3)
    color = png(1, 1, depth=16, color=2, rows=b"\0" + bytes.fromhex("12ff34008056"))
    assert decode_image(color).getpixel((0, 0)) == (0x12, 0x34, 0x80)


def test_a_color_profile_is_converted_and_srgb_is_not_touched() -> None:
    assert decode_image(encoded(gradient(), icc_profile=SRGB)).tobytes() == gradient().tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for ignored in (lab, b"not a profile"):
        assert decode_image(encoded(gradient(), icc_profile=ignored)).tobytes() == gradient().tobytes()
    # the same primaries but in the order blue, red, green: made of the sRGB profile by renaming its tags
    names = {b"rXYZ": b"bXYZ", b"bXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    swapped = bytearray(SRGB.replace("sRGB built-in".encode("utf-16-be"), "other profile".encode("utf-16-be")))
    for at in range(132, 132 + 12 * int.from_bytes(SRGB[128:132]), 12):
        swapped[at : at + 4] = names.get(SRGB[at : at + 4], SRGB[at : at + 4])
    found = decode_image(encoded(Image.new("RGB", (2, 2), RED), icc_profile=bytes(swapped))).getpixel((0, 0))
    assert isinstance(found, tuple)
    assert found[1] > 200
    assert found[2] < 40


def test_cmyk_without_a_profile_is_refused() -> None:
    with pytest.raises(InputError, match=r"CMYK without a colour profile.*store it as RGB"):
        check_image(encoded(gradient("CMYK"), "JPEG"))
    with pytest.raises(InputError, match="CMYK with a damaged colour profile"):
        check_image(encoded(gradient("CMYK"), "JPEG", icc_profile=b"x" * 200))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    noise = Image.effect_noise((64, 64), 80)
    data = encoded(noise, kind)
    with pytest.raises(InputError, match="damaged"):
        check_image(data[: int(len(data) * share)])


def test_animated_files_are_refused() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    for kind in ("PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match="is animated, with 2 frames; store one"):
            check_image(data)


def test_a_second_image_in_a_jpeg_is_passed_over() -> None:
    data = encoded(Image.new("RGB", (8, 8), RED), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4), BLUE)])
    assert check_image(data) == (8, 8)


def test_bombs_are_refused_by_their_header() -> None:
    for size in ((MAX_INPUT_SIDE + 1, 1), (8_000, MAX_INPUT_PIXELS // 8_000 + 1), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(InputError, match=f"is {size[0]}x{size[1]}; at most 50,000,000 pixels"):
            check_image(png(*size))
    with pytest.raises(InputError, match="bytes; at most"):
        check_image(bytes(MAX_INPUT_BYTES + 1))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encoded(gradient(), "GIF"), "a GIF"),
        (encoded(gradient(), "BMP"), "a BMP"),
        (encoded(gradient(), "TIFF"), "a TIFF"),
        (b"\0\0\0\x20ftypavif", "an AVIF"),
        (b"\0\0\0\x18ftypheic", "a HEIC"),
        (b"\0\0\0\x18ftypmp42", "a video"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg">', "an SVG"),
        (b"%PDF-1.7", "a PDF"),
        (b"", "empty"),
        (b"hello", "not an image of a known format"),
    ],
)
def test_other_formats_are_named(data: bytes, name: str) -> None:
    with pytest.raises(InputError) as raised:
        check_image(data)
    assert str(raised.value) == f"is {name}; store it as PNG, JPEG or WebP"


def whole_files() -> dict[str, bytes]:
    """Return a small file of each format, with EXIF data and a profile."""
    exif = Image.Exif()
    exif[0x0112] = 6
    both = {"exif": exif.tobytes(), "icc_profile": SRGB}
    return {kind: encoded(gradient("L" if kind == "PNG" else "RGB"), kind, **both) for kind in ("PNG", "JPEG", "WEBP")}


WHOLE = whole_files()


# pytest replaces the filter of the module
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@given(st.data(), st.sampled_from(sorted(WHOLE)))
def test_a_damaged_file_is_decoded_or_refused(data: st.DataObject, kind: str) -> None:
    damaged = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        size = check_image(bytes(damaged))
    except InputError:
        return
    assert decode_image(bytes(damaged)).size == size
