"""The calls of the device, and which images take part in them: if one breaks, these are the suspects."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch

from latentfarm_worker.engine.image_state import ImageState

#: steps that the host may be ahead of the device: enough to keep it busy, few enough to react to a cancellation
_AHEAD = 2


class DeviceCall:
    """The running call of the text encoder, the model or the decoder.

    Args:
        on_forward: called before each call.

    Attributes:
        images: the images that take part in the running call, or in the one that broke. Empty between the steps, and
            while the engine measures.
    """

    def __init__(self, on_forward: Callable[[], None]) -> None:
        self._on_forward = on_forward
        self.images: Sequence[ImageState] = ()

    def begin(self, images: Sequence[ImageState]) -> None:
        """Begin a call for these images."""
        self.images = images
        self._on_forward()

    def again(self) -> None:
        """Begin another call for the same images."""
        self._on_forward()


class RunAhead:
    """Keeps the host at most ``_AHEAD`` steps before the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps_begun: deque[torch.cuda.Event] = deque()

    def limit(self) -> None:
        """Wait until the device is not too far behind; called once in each step."""
        if self._device.type != "cuda":
            return
        # a wait for it sleeps instead of keeping a core busy
        begun = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        begun.record()
        self._steps_begun.append(begun)
        if len(self._steps_begun) > _AHEAD:
            self._steps_begun.popleft().synchronize()


def find_cause(images: Sequence[ImageState]) -> ImageState | None:
    """Return the image whose fault a broken call is, once it is known; the call was for these images.

    Else each half of them gets a cohort of its own, so that the halves run one after the other. An image that is alone
    has a second try: the error may not come again.
    """
    split_in_halves(images)
    if len(images) > 1:
        return None
    [image] = images
    image.broken += 1
    return image if image.broken > 1 else None


def split_in_halves(images: Sequence[ImageState]) -> None:
    """Give each half of the images a cohort of its own."""
    middle = (len(images) + 1) // 2
    for half in (images[:middle], images[middle:]):
        cohort = object()
        for image in half:
            image.cohort = cohort
