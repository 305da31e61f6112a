"""Images as CLIP reads them: small, square and normalized, as by transformers' image processor for CLIP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

#: of CLIP's own images
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipPixels(NamedTuple):
    """How an image becomes the encoder's input: pixels of the shorter side and of the crop, mean and deviation."""

    shorter: int
    crop: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @classmethod
    def read(cls, *folders: Path, side: int) -> ClipPixels:
        """Return what ``preprocessor_config.json`` of the first folder with one names; CLIP's own if there is none.

        Args:
            folders: where it may be.
            side: pixels of the encoder's input.

        Raises:
            OSError, ValueError: the file cannot be read.
        """
        paths = (folder / "preprocessor_config.json" for folder in folders)
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return cls(side, side)
        config = json.loads(path.read_text(encoding="utf-8"))
        shorter, crop = (_side(config.get(name, side)) for name in ("size", "crop_size"))
        return cls(shorter, crop, tuple(config.get("image_mean", MEAN)), tuple(config.get("image_std", STD)))

    def run(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return uint8 (H, W, 3) as float32 (1, 3, crop, crop)."""
        image = Image.fromarray(pixels.numpy())
        short, long = sorted(image.size)
        longer = int(self.shorter * long / short)
        size = (self.shorter, longer) if image.width <= image.height else (longer, self.shorter)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - self.crop) // 2, (image.height - self.crop) // 2
        values = np.asarray(image.crop((left, top, left + self.crop, top + self.crop)), dtype=np.float32) / 255
        scaled = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(scaled).permute(2, 0, 1)[None].contiguous()


def _side(entry: int | Mapping[str, int]) -> int:
    """Return a size in pixels, which older configs have as a number."""
    return entry if isinstance(entry, int) else int(entry.get("shortest_edge") or entry["height"])
