"""The image that a net follows: a control image as it is given, or its edges."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import torch

from latentfarm.edit_fields import Control
from latentfarm.recent_cache import RecentCache
from latentfarm_worker.adapters.controlnet.canny import canny

#: edges that are kept: a batch has few control images and many prompts
_KEPT = 64


class ControlImages:
    """Makes control images, and keeps the latest edges. Thread-safe."""

    def __init__(self) -> None:
        self._edges: RecentCache[tuple[object, ...], torch.Tensor] = RecentCache(_KEPT)

    def get(self, control: Control, image: torch.Tensor) -> torch.Tensor:
        """Return what the net of a control follows, uint8 (H, W, 3), of its image in the job's size."""
        if control.preprocessor != "canny":
            return image
        pixels = image.numpy()
        # of one input there are images of several sizes, cut out and enlarged in several ways
        key = (pixels.shape, sha256(pixels.tobytes()).digest())
        edges = self._edges.get(key)
        if edges is None:
            lines = torch.from_numpy(canny(pixels).astype(np.uint8) * np.uint8(255))
            edges = lines[..., None].expand(-1, -1, 3)
            self._edges.put(key, edges)
        return edges
