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
from latentfarm.job import Job
from latentfarm_worker.png import encode_png

#: of JPEG's 1 to 100; colours keep every pixel (4:4:4)
JPEG_QUALITY, JPEG_SUBSAMPLING = 95, "444"
#: how hard WebP tries, 0 to 6 and 0 to 100: more takes four times the CPU for 3 % fewer bytes
_WEBP_METHOD, _WEBP_EFFORT = 0, 0
_EXIF_HEADER = b"Exif\0\0"
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
    """Return the texts as Exif: parameters where AUTOMATIC1111's web UI puts and looks for them; empty if none."""
    if not metadata:
        return b""
    exif = Image.Exif()
    if "parameters" in metadata:
        comment = UNICODE_COMMENT + metadata["parameters"].encode("utf-16-be")
        exif.get_ifd(EXIF_DIRECTORY)[USER_COMMENT] = comment
    if "latentfarm" in metadata:
        # this field is ASCII, and JSON can be
        exif[IMAGE_DESCRIPTION] = json.dumps(json.loads(metadata["latentfarm"]))
    written = exif.tobytes()
    return written if written.startswith(_EXIF_HEADER) else _EXIF_HEADER + written


_ENCODERS: Mapping[str, Callable[[NDArray[np.uint8], Mapping[str, str]], bytes]] = MappingProxyType(
    {"png": _png, "webp": _webp, "jpeg": _jpeg}
)


def parameters_text(job: Job, *, width: int, height: int, scheduler: str, model: str, model_digest: str) -> str:
    """Return the text of ``parameters`` as AUTOMATIC1111's web UI writes and reads it."""
    settings = {
        "Steps": job.num_inference_steps,
        "Sampler": job.scheduler or scheduler,
        "CFG scale": f"{job.guidance_scale:g}",
        "Seed": job.seed,
        "Size": f"{width}x{height}",
        "Model hash": model_digest[:10],
        "Model": model,
    }
    if job.clip_skip:
        # there 1 is the last layer, and 2 skips one
        settings["Clip skip"] = job.clip_skip + 1
    lines = [job.prompt]
    if job.negative_prompt:
        lines.append(f"Negative prompt: {job.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value
