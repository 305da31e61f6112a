"""Encode pixels as PNG, WebP or JPEG, with the job's settings embedded.

Every encoder releases the GIL, so that images are encoded while the engine's thread runs.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from latentfarm.image_formats import EXIF_DIRECTORY, IMAGE_DESCRIPTION, UNICODE_COMMENT, USER_COMMENT
from latentfarm_worker.images.png import encode_png

#: quality from 1 to 100; 4:4:4 keeps the colour of every pixel
JPEG_QUALITY, JPEG_SUBSAMPLING = 95, "444"
#: lowest effort, of 0 to 6 and 0 to 100: more costs four times the CPU for 3 % fewer bytes
_WEBP_METHOD, _WEBP_EFFORT = 0, 0
_EXIF_HEADER = b"Exif\0\0"
#: Exif's value types, and the offset of its first directory
_ASCII, _LONG, _UNDEFINED = 2, 4, 7
_FIRST_DIRECTORY_AT = 8
#: maximal size of a JPEG segment, its length field included
_MAX_SEGMENT_BYTES = 65_535


def encode_image(pixels: torch.Tensor, image_format: str, *, metadata: Mapping[str, str]) -> bytes:
    """Return the image file. The same pixels and metadata give the same bytes.

    Args:
        pixels: uint8 (height, width, 3) on the CPU.
        image_format: a name of ``latentfarm.image_formats.IMAGE_FORMATS``; png and webp are lossless.
        metadata: the texts ``parameters`` and ``latentfarm``, or empty; ``embedded_text`` reads them.
    """
    return _ENCODERS[image_format](np.ascontiguousarray(pixels), metadata)


def _png(pixels: NDArray[np.uint8], metadata: Mapping[str, str]) -> bytes:
    return encode_png(pixels, text=metadata)


def _webp(pixels: NDArray[np.uint8], metadata: Mapping[str, str]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(
        out, format="WEBP", lossless=True, method=_WEBP_METHOD, quality=_WEBP_EFFORT, exif=_exif(metadata)
    )
    return out.getvalue()


def _jpeg(pixels: NDArray[np.uint8], metadata: Mapping[str, str]) -> bytes:
    # simplejpeg, because Pillow holds the GIL while it encodes
    body: bytes = simplejpeg.encode_jpeg(
        pixels, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling=JPEG_SUBSAMPLING, fastdct=False
    )
    receipt_only = {name: metadata[name] for name in ("latentfarm",) if name in metadata}
    # 4,096 control characters in JSON are 24 kB: if both texts do not fit, `parameters` is dropped, as it is derived
    for texts in (metadata, receipt_only):
        exif = _exif(texts)
        size = len(exif) + 2
        if exif and size <= _MAX_SEGMENT_BYTES:
            # Exif must be the first segment after the start-of-image marker
            return b"".join((body[:2], b"\xff\xe1", struct.pack(">H", size), exif, body[2:]))
    return body


def _exif(metadata: Mapping[str, str]) -> bytes:
    """Return the texts as an Exif block, or empty bytes if there are none.

    ``parameters`` becomes the UserComment, where AUTOMATIC1111's web UI reads it. The block is a TIFF of two
    directories (CIPA DC-008, 4.6). It is written by hand, because Pillow gives the comment a type that piexif rejects.
    """
    # ImageDescription is an ASCII field, so non-ASCII characters are escaped as JSON
    receipt = json.dumps(json.loads(metadata["latentfarm"])).encode() + b"\0" if "latentfarm" in metadata else b""
    comment = UNICODE_COMMENT + metadata["parameters"].encode("utf-16-be") if "parameters" in metadata else b""
    if not receipt and not comment:
        return b""
    # big-endian, so that the comment's UTF-16 has the byte order of the file
    header = b"MM\0*" + struct.pack(">I", _FIRST_DIRECTORY_AT)
    entries = [(IMAGE_DESCRIPTION, _ASCII, receipt)] if receipt else []
    pointer = [(EXIF_DIRECTORY, _LONG, struct.pack(">I", 0))] if comment else []
    second_at = _FIRST_DIRECTORY_AT + len(_directory(entries + pointer, at=_FIRST_DIRECTORY_AT))
    pointer = [(tag, kind, struct.pack(">I", second_at)) for tag, kind, _ in pointer]
    first = _directory(entries + pointer, at=_FIRST_DIRECTORY_AT)
    second = _directory([(USER_COMMENT, _UNDEFINED, comment)], at=second_at) if comment else b""
    return _EXIF_HEADER + header + first + second


def _directory(entries: list[tuple[int, int, bytes]], *, at: int) -> bytes:
    """Return a TIFF directory of (tag, type, value) followed by its longer values; ``at`` is its offset in the file."""
    table, values = struct.pack(">H", len(entries)), b""
    values_at = at + 2 + 12 * len(entries) + 4
    for tag, kind, value in entries:
        field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(">I", values_at + len(values))
        table += struct.pack(">HHI", tag, kind, 1 if kind == _LONG else len(value)) + field
        # values start at even offsets
        values += (value + b"\0" * (len(value) % 2)) if len(value) > 4 else b""
    return table + struct.pack(">I", 0) + values


_ENCODERS: Mapping[str, Callable[[NDArray[np.uint8], Mapping[str, str]], bytes]] = MappingProxyType(
    {"png": _png, "webp": _webp, "jpeg": _jpeg}
)
