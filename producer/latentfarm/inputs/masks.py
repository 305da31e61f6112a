"""Masks of other conventions, as the masks of jobs: white is painted again, black is kept."""

from __future__ import annotations

import io

from PIL import Image, ImageChops, ImageOps

from latentfarm.errors import InputError
from latentfarm.inputs.decoding import decode_mask, load, open_image


def mask_of_transparency(data: bytes) -> bytes:
    """Return the mask, a PNG, of an image that is transparent where it is to be painted, as OpenAI's masks are.

    Raises:
        InputError: the bytes are no image, or it is opaque.
    """
    image = open_image(data)
    load(image)
    if not image.has_transparency_data:
        raise InputError("has no transparent part; make the part to paint transparent, or write a mask_image")
    turned = ImageOps.exif_transpose(image.convert("RGBA"))
    return _encode(ImageChops.invert(turned.getchannel("A")))


def inverted_mask(data: bytes) -> bytes:
    """Return the mask, a PNG, that paints what another mask keeps.

    Raises:
        InputError: the bytes are no image.
    """
    return _encode(ImageChops.invert(decode_mask(data)))


def _encode(mask: Image.Image) -> bytes:
    body = io.BytesIO()
    # the same mask has the same bytes, so it is stored once
    mask.save(body, "PNG", compress_level=6)
    return body.getvalue()
