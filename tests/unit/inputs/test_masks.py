"""Masks of other conventions."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from latentfarm.errors import InputError
from latentfarm.inputs.decoding import decode_mask
from latentfarm.inputs.masks import inverted_mask, mask_of_transparency

pytestmark = pytest.mark.unit


def encode(image: Image.Image, **options: Any) -> bytes:
    body = io.BytesIO()
    image.save(body, "PNG", **options)
    return body.getvalue()


def test_a_transparent_part_is_painted_of_any_colour() -> None:
    image = Image.new("RGBA", (3, 2), (255, 255, 255, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 255, 255, 55))
    made = decode_mask(mask_of_transparency(encode(image)))
    assert (made.mode, made.size) == ("L", (3, 2))
    assert made.tobytes() == bytes([255, 200, 0, 0, 0, 0])
    # a palette has transparent colours, and a greyscale image may have one too
    palette = image.quantize(4)
    assert decode_mask(mask_of_transparency(encode(palette))).getpixel((0, 0)) == 255
    grey = Image.frombytes("LA", (2, 1), bytes([9, 0, 9, 255]))
    assert decode_mask(mask_of_transparency(encode(grey))).tobytes() == bytes([255, 0])


def test_a_mask_is_rotated_as_its_image_is() -> None:
    image = Image.new("RGBA", (3, 2), (0, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = decode_mask(mask_of_transparency(encode(image, exif=exif)))
    assert made.size == (2, 3)
    assert made.getpixel((1, 0)) == 255


def test_an_opaque_image_is_no_such_mask() -> None:
    with pytest.raises(InputError, match=r"^has no transparent part; make the part to paint transparent, or write a"):
        mask_of_transparency(encode(Image.new("RGB", (2, 2))))
    with pytest.raises(InputError, match="store it as PNG, JPEG or WebP"):
        mask_of_transparency(b"x")


def test_an_inverted_mask_paints_what_was_kept() -> None:
    mask = Image.frombytes("L", (3, 1), bytes([0, 100, 255]))
    assert decode_mask(inverted_mask(encode(mask))).tobytes() == bytes([255, 155, 0])
    assert inverted_mask(encode(mask)) == inverted_mask(encode(mask, compress_level=1))
