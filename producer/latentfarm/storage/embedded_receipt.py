"""Read the receipt that is embedded in an image."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from typing import Any

from PIL import Image

from latentfarm.image_formats import embedded_text, format_of
from latentfarm.limits import MAX_SIDE

_MAX_PIXELS = MAX_SIDE * MAX_SIDE


def embedded_receipt(body: bytes, key: str, job: str) -> dict[str, Any] | None:
    """Return the receipt in an image, plus the sha256 and the size in bytes of the image.

    Returns None if the image does not decode, is not of the format of its key, or belongs to another job.
    """
    expected = format_of(key)
    if expected is None:
        return None
    try:
        with Image.open(io.BytesIO(body), formats=[expected.pillow]) as image:
            # checked before decoding: a small file could expand to gigabytes
            if image.width * image.height > _MAX_PIXELS:
                return None
            image.load()
            receipt = json.loads(embedded_text(image).get("latentfarm", "{}"))
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return None
    if not isinstance(receipt, dict) or receipt.pop("job", job) != job:
        return None
    return {**receipt, "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
