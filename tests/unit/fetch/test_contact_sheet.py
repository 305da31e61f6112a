from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentfarm.fetch.contact_sheet import contact_sheet

pytestmark = pytest.mark.unit


def test_a_contact_sheet_shows_every_image_in_order(tmp_path: Path) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    extensions = (".png", ".webp", ".jpg", ".png", ".png")
    files = [tmp_path / f"{number}{extension}" for number, extension in enumerate(extensions)]
    for file, colour in zip(files, colours, strict=True):
        Image.new("RGB", (64, 32), colour).save(file, lossless=True)
    sheet = contact_sheet([(file, "a word " * 20) for file in files])
    seen = [sheet.getpixel((12 + 204 * (n % 4) + 96, 12 + 253 * (n // 4) + 96)) for n in range(5)]
    # the JPEG's blue has a touch of red
    assert np.abs(np.array(seen) - colours).max() <= 1
