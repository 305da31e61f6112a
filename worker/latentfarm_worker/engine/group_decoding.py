"""One call of the decoder for a group of latents, and the copy of its images to the host, which nothing waits for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latentfarm_worker.engine.device_call import DeviceCall
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.host_copy import receive
from latentfarm_worker.models.base import Family


@dataclass(frozen=True)
class HostTransfer:
    """A decoded image on its way to the host: pixels uint8 (H, W, 3), validity bool (3,).

    ``group``: images that were decoded with it, padding included; 0 if it was decoded in tiles.
    """

    pixels: torch.Tensor
    validity: torch.Tensor
    group: int
    timer: DecodeTimer


class GroupDecoder:
    """Calls the decoder with groups that are padded to a fixed size, so that an image does not depend on the others.

    Args:
        family: the model.
        call: records which images are decoded.
    """

    def __init__(self, family: Family, call: DeviceCall) -> None:
        self._family = family
        self._call = call
        self._stream: torch.cuda.Stream | None = None
        if family.device.type == "cuda":
            self._stream = torch.cuda.Stream(family.device)  # type: ignore[no-untyped-call]

    def begin(self, images: Sequence[ImageState], latents: Sequence[torch.Tensor], size: int) -> list[HostTransfer]:
        """Decode latents (C, h, w) of images in a group of ``size``, and begin the copy. A size of 0 means in tiles."""
        timer = DecodeTimer(self._family.device, images=len(latents))
        self._call.begin(images)
        stacked = torch.stack([*latents, *[torch.zeros_like(latents[0])] * (size - len(latents))])
        pixels, finite = self._family.decode(stacked, tiled=True) if size == 0 else self._family.decode(stacked)
        validity = validity_of(stacked, pixels, finite)
        timer.decoded()
        if self._stream is not None:
            pixels, validity = receive(pixels, self._stream), receive(validity, self._stream)
        timer.copied(self._stream)
        return [HostTransfer(pixels[at], validity[at], group=size, timer=timer) for at in range(len(latents))]

    def receive(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what will hold a tensor on the host before the pixels of the next group are there."""
        on_host = self._stream is None or tensor.device.type == "cpu"
        return tensor if on_host or self._stream is None else receive(tensor, self._stream)


class DecodeTimer:
    """Measures the decoding of a group and its arrival on the host, on a GPU with CUDA events."""

    def __init__(self, device: torch.device, *, images: int) -> None:
        self._images = images
        self._began = time.perf_counter()
        self._seconds = 0.0
        self._events: list[torch.cuda.Event] = []
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]  # type: ignore[no-untyped-call]
            self._events[0].record()

    def decoded(self) -> None:
        """Note that the decoder was called."""
        if self._events:
            self._events[1].record()
        self._seconds = time.perf_counter() - self._began

    def copied(self, stream: torch.cuda.Stream | None) -> None:
        """Note that the copy to the host has begun."""
        if self._events:
            self._events[2].record(stream)

    def arrived(self, *, wait: bool) -> bool:
        """Return whether the group has reached the host; if ``wait``, wait for it."""
        if self._events and wait:
            self._events[2].synchronize()
        return not self._events or bool(self._events[2].query())  # type: ignore[no-untyped-call]

    @property
    def seconds(self) -> float:
        """Return one image's share of the decoding time. Valid after ``arrived``."""
        if self._events:
            return float(self._events[0].elapsed_time(self._events[1])) / 1000 / self._images
        return self._seconds / self._images


def validity_of(latents: torch.Tensor, pixels: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """Return bool (N, 3): the latents are finite, the decoder's output is, and the image has more than one colour.

    A sampled image never has one colour to the last bit. A decoder that overflows makes such images, mostly black.
    """
    finite_latents = torch.isfinite(latents).flatten(1).all(dim=1)
    varied = (pixels != pixels[:, :1, :1]).flatten(1).any(dim=1)
    return torch.stack([finite_latents, finite, varied], dim=1)
