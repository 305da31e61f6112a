"""Small files of one color, and their data URLs, as sources of input images."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image


def image_bytes(color: Any = "red", size: tuple[int, int] = (64, 64), *, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """Return a file of one color."""
    stream = io.BytesIO()
    Image.new(mode, size, color).save(stream, kind)
    return stream.getvalue()


def data_url(color: Any = "red", size: tuple[int, int] = (64, 64), *, mode: str = "RGB") -> str:
    """Return the data URL of a PNG of one color."""
    return f"data:image/png;base64,{base64.b64encode(image_bytes(color, size, mode=mode)).decode()}"
