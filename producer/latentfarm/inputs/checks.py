"""Check an input image at submission, by decoding it once."""

from __future__ import annotations

from threading import Semaphore

from latentfarm.inputs.decoding import decode_image

#: images that are decoded at the same time; the largest has 200 MB of samples
_DECODED_AT_ONCE = 4
_decoding = Semaphore(_DECODED_AT_ONCE)


def check_image(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels, rotated by EXIF, of an image that can be decoded.

    Raises:
        InputError: it cannot, it is animated, or it is too large. The text has the cure.
    """
    with _decoding:
        return decode_image(data).size
