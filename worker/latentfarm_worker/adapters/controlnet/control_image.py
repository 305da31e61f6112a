"""The image that a net follows: a control image as it is given, or its edges."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import numpy as np
import torch

from latentfarm.edit_fields import Control
from latentfarm_worker.adapters.controlnet.canny import canny

#: edges that are kept: a batch has few control images and many prompts
_KEPT = 64


class ControlImages:
    """Makes control images, and keeps the latest edges. Thread-safe."""

    def __init__(self) -> None:
        self._edges: OrderedDict[tuple[object, ...], torch.Tensor] = OrderedDict()
        self._lock = Lock()

    def get(self, control: Control, image: torch.Tensor, resize: str | None) -> torch.Tensor:
        """Return what the net of a control follows, uint8 (H, W, 3).

        Args:
            control: the control.
            image: its image in the job's size, uint8 (H, W, 3).
            resize: how it became that size.
        """
        if control.preprocessor != "canny":
            return image
        key = (control.image, resize, tuple(image.shape))
        with self._lock:
            if key in self._edges:
                self._edges.move_to_end(key)
                return self._edges[key]
        lines = torch.from_numpy(canny(image.numpy()).astype(np.uint8) * np.uint8(255))
        edges = lines[..., None].expand(-1, -1, 3)
        with self._lock:
            self._edges[key] = edges
            while len(self._edges) > _KEPT:
                self._edges.popitem(last=False)
        return edges
