"""Pixels to the bytes of a picture in the format that was asked for, with the settings that made it inside.

Every encoder gives the GIL away while it works, so that pictures are encoded beside the engine's thread.
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

#: of JPEG's 1 to 100; colours keep every pixel (4:4:4)
JPEG_QUALITY, JPEG_SUBSAMPLING = 95, "444"
#: how hard WebP tries, 0 to 6 and 0 to 100: more takes four times the CPU for 3 % fewer bytes
_WEBP_METHOD, _WEBP_EFFORT = 0, 0
_EXIF_HEADER = b"Exif\0\0"
#: Exif's types, and where its first directory stands
_ASCII, _LONG, _UNDEFINED = 2, 4, 7
_FIRST_DIRECTORY_AT = 8
#: what a segment of a JPEG holds, its own length among it
_MAX_SEGMENT_BYTES = 65_535


def encode_image(pixels: torch.Tensor, image_format: str, *, metadata: Mapping[str, str]) -> bytes:
    """Return a picture of ``pixels``, (height, width, 3) uint8 on the CPU.

    ``image_format`` is png, webp (both without loss) or jpeg. The same pixels and metadata give the same bytes.

    Args:
        pixels: what it shows.
        image_format: a name of ``latentfarm.image_formats.IMAGE_FORMATS``.
        metadata: ``parameters`` and ``latentfarm``, or nothing; ``text_inside`` reads them.
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
    # Pillow would hold the GIL
    body: bytes = simplejpeg.encode_jpeg(
        pixels, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling=JPEG_SUBSAMPLING, fastdct=False
    )
    for told in (metadata, {name: metadata[name] for name in ("latentfarm",) if name in metadata}):
        exif = _exif(told)
        size = len(exif) + 2
        # 4,096 control characters in JSON are 24 kB: what is derived from the rest gives way to it
        if exif and size <= _MAX_SEGMENT_BYTES:
            # behind the mark that begins the file, as Exif wants it
            return b"".join((body[:2], b"\xff\xe1", struct.pack(">H", size), exif, body[2:]))
    return body


def _exif(metadata: Mapping[str, str]) -> bytes:
    """Return the texts as Exif: parameters where AUTOMATIC1111's web UI puts and looks for them; empty if none.

    A TIFF of two directories (CIPA DC-008, 4.6), by hand: Pillow gives the comment a type that piexif does not read.
    """
    # this field is ASCII, and JSON can be
    told = json.dumps(json.loads(metadata["latentfarm"])).encode() + b"\0" if "latentfarm" in metadata else b""
    comment = UNICODE_COMMENT + metadata["parameters"].encode("utf-16-be") if "parameters" in metadata else b""
    if not told and not comment:
        return b""
    # big-endian, so that the comment's UTF-16 is in the order of the numbers
    header = b"MM\0*" + struct.pack(">I", _FIRST_DIRECTORY_AT)
    entries = [(IMAGE_DESCRIPTION, _ASCII, told)] if told else []
    pointer = [(EXIF_DIRECTORY, _LONG, struct.pack(">I", 0))] if comment else []
    behind = _FIRST_DIRECTORY_AT + len(_directory(entries + pointer, at=_FIRST_DIRECTORY_AT))
    pointer = [(tag, kind, struct.pack(">I", behind)) for tag, kind, _ in pointer]
    first = _directory(entries + pointer, at=_FIRST_DIRECTORY_AT)
    second = _directory([(USER_COMMENT, _UNDEFINED, comment)], at=behind) if comment else b""
    return _EXIF_HEADER + header + first + second


def _directory(entries: list[tuple[int, int, bytes]], *, at: int) -> bytes:
    """Return a TIFF's directory of (tag, type, value), the longer values behind it; ``at`` is where it will stand."""
    table, values = struct.pack(">H", len(entries)), b""
    values_at = at + 2 + 12 * len(entries) + 4
    for tag, kind, value in entries:
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(">I", values_at + len(values))
        table += struct.pack(">HHI", tag, kind, 1 if kind == _LONG else len(value)) + place
        # values begin at even places
        values += (value + b"\0" * (len(value) % 2)) if len(value) > 4 else b""
    return table + struct.pack(">I", 0) + values


_ENCODERS: Mapping[str, Callable[[NDArray[np.uint8], Mapping[str, str]], bytes]] = MappingProxyType(
    {"png": _png, "webp": _webp, "jpeg": _jpeg}
)
