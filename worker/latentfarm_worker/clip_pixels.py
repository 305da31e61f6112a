"""Images as CLIP reads them: small, square and normalized, as by transformers' image processor for CLIP."""

from __future__ import annotations

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
