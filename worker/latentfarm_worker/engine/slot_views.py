"""What the running images are like now: their estimates, on the way to the host.

Nothing is read without a request. Views never change, delay or break the images.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace

import torch

from latentfarm_worker.engine.decoder import Decoded
from latentfarm_worker.engine.device_batch import DeviceBatch
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.host_copy import receive


@dataclass(frozen=True)
class SlotView:
    """An image on the device, after ``step`` of ``steps`` evaluations of the model."""

    handle: Hashable
    step: int
    steps: int


@dataclass(frozen=True, eq=False)
class SlotViews:
    """All images on the device at one moment.

    Attributes:
        slots: the images, by their places.
        estimates: by place in ``slots``, what the image's finished latents will be, float32 (C, h, w) on the host. An
            image before its first evaluation has none.
        decoded: images that were decoded since the last views, on the host.
    """

    slots: tuple[SlotView, ...]
    estimates: dict[int, torch.Tensor]
    decoded: tuple[Decoded, ...]


class SlotViewer:
    """Reads views. One at a time is on its way to the host.

    Args:
        device: the device of the images.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._arrival: torch.cuda.Event | None = None
        self._coming: SlotViews | None = None
        self._read: tuple[Decoded, ...] = ()

    def begin(self, batch: DeviceBatch | None, images: Iterable[ImageState], decoded: tuple[Decoded, ...]) -> None:
        """Begin to read the images of a batch and the decoded ones that are new, unless a view is on its way."""
        if self._coming is not None:
            return
        ordered = sorted(images, key=lambda image: image.place)
        slots = tuple(SlotView(image.handle, image.evaluations_done, image.evaluations) for image in ordered)
        self._coming = SlotViews(slots, self._estimates(batch, ordered), self._new(decoded))
        self._read = decoded
        if self._stream is not None:
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrival.record(self._stream)

    def take(self) -> SlotViews | None:
        """Return the views that have reached the host; None if there are none."""
        if self._arrival is not None and not self._arrival.query():  # type: ignore[no-untyped-call]
            return None
        views, self._coming, self._arrival = self._coming, None, None
        return views

    def _estimates(self, batch: DeviceBatch | None, images: list[ImageState]) -> dict[int, torch.Tensor]:
        begun = [at for at, image in enumerate(images) if image.step_index]
        if batch is None or not begun:
            return {}
        estimates = self._receive(torch.stack([batch.estimate(images[at]) for at in begun]))
        return dict(zip(begun, estimates.unbind(), strict=True))

    def _new(self, decoded: tuple[Decoded, ...]) -> tuple[Decoded, ...]:
        new = [each for each in decoded if each not in self._read]
        return tuple(replace(each, latents=self._receive(each.latents)) for each in new)

    def _receive(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return tensor
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return receive(tensor, self._stream)
