"""PNG at a sixth of Pillow's CPU time and about its size: one filter for all rows, and runs instead of matches.

What is chosen and why is measured in docs/explanation/benchmarks.md. Paeth's filter leaves of most images the least, trying
all filters on every row, as Pillow does, costs more than it gains. In the noise that is left a search for matches finds
next to nothing, so zlib looks for runs of one byte only (``Z_RLE``), which keeps plain areas small. Runs leave it no
choice, so the same pixels give the same bytes with every zlib and on every processor.

Format: W3C, Portable Network Graphics (Third Edition), sections 5 (chunks), 9 (filters) and 11.3.3 (text).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

Bytes = NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB, _CHANNELS, _DEPTH = 2, 3, 8
_PAETH = 4
#: bytes filtered at once, so that what comes between stays in the processor's cache
_BLOCK = 1 << 16
_LEVEL, _MEMORY = 1, 9


def encode_png(pixels: Bytes, *, text: Mapping[str, str]) -> bytes:
    """Return the PNG of ``pixels``, (height, width, 3), with a text chunk for each entry, before the pixels."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, _DEPTH, _RGB, 0, 0, 0)
    compressor = zlib_ng.compressobj(_LEVEL, zlib_ng.DEFLATED, zlib_ng.MAX_WBITS, _MEMORY, zlib_ng.Z_RLE)
    packed = compressor.compress(filter_rows(pixels)) + compressor.flush()
    chunks = [(b"IHDR", header), *_text_chunks(text), (b"IDAT", packed), (b"IEND", b"")]
    return _SIGNATURE + b"".join(part for kind, body in chunks for part in _chunk(kind, body))


def filter_rows(pixels: Bytes) -> Bytes:
    """Return the rows of ``pixels``, (height, 1 + 3 x width), each as its filter's number and what Paeth's leaves."""
    height, width, _ = pixels.shape
    row = width * _CHANNELS
    # with a black pixel left of each row and a black row above, neighbours lie at fixed distances in one long array
    pitch = _CHANNELS + row
    padded = np.zeros(_CHANNELS + (height + 1) * pitch, np.uint8)
    padded[_CHANNELS:].reshape(height + 1, pitch)[1:, _CHANNELS:] = pixels.reshape(height, row)
    left = np.empty(height * pitch, np.uint8)
    for start in range(0, len(left), _BLOCK):
        _filter_block(padded[start:], pitch, left[start : start + _BLOCK])
    rows = np.empty((height, 1 + row), np.uint8)
    rows[:, 0] = _PAETH
    rows[:, 1:] = left.reshape(height, pitch)[:, _CHANNELS:]
    return rows


def _filter_block(padded: Bytes, pitch: int, out: Bytes) -> None:
    """Write what Paeth's filter leaves of ``len(out)`` bytes of which the first is at ``pitch + 3`` of ``padded``.

    Its prediction, the one of left, above and above left that is nearest to left + above - above left, is worked out
    without numbers beyond a byte: where above left is outside of the other two, the farther one of them; else the end
    that is more than twice as far from it as the other is ignored, and if none is, above left itself.
    """
    size = len(out)
    here, before = padded[_CHANNELS + pitch :][:size], padded[pitch:][:size]
    above, corner = padded[_CHANNELS:][:size], padded[:size]
    high, low = np.maximum(before, above), np.minimum(before, above)
    predicted = np.clip(corner, low, high)
    to_high, to_low = high - predicted, predicted - low
    # a comparison's 0 and 1 become 0 and 255, a mask
    goes_low = np.negative((to_high <= to_low >> 1).view(np.uint8))
    goes_high = np.negative((to_low <= to_high >> 1).view(np.uint8))
    predicted -= to_low & goes_low
    predicted += to_high & goes_high
    np.subtract(here, predicted, out=out)


def _text_chunks(text: Mapping[str, str]) -> Iterator[tuple[bytes, bytes]]:
    for keyword, value in text.items():
        # tEXt is Latin-1, and what other programs look for first; iTXt, here not compressed and of no language, Unicode
        if value.isascii():
            yield b"tEXt", keyword.encode("latin-1") + b"\0" + value.encode("latin-1")
        else:
            yield b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + value.encode()


def _chunk(kind: bytes, body: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    checksum: int = zlib_ng.crc32(body, zlib_ng.crc32(kind))
    return struct.pack(">I", len(body)), kind, body, struct.pack(">I", checksum)
