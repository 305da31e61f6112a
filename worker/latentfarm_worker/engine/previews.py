"""Partial images: decode the estimates of images that still run. They never change, delay or break the images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from latentfarm_worker import device_errors
from latentfarm_worker.engine.group_decoding import GroupDecoder, HostTransfer
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.outcomes import Preview, first_line

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Pending:
    """An estimate (C, h, w) of an image after ``step`` evaluations."""

    image: ImageState
    number: int
    step: int
    latents: torch.Tensor
    transfer: HostTransfer | None = None


class Previews:
    """Decodes estimates one by one.

    Args:
        decoder: calls the model's decoder.
        group_size: returns the size of the decoder's groups for latents; a compiled decoder has one size only.
    """

    def __init__(self, decoder: GroupDecoder, group_size: Callable[[torch.Tensor], int]) -> None:
        self._decoder = decoder
        self._group_size = group_size
        self._waiting: list[_Pending] = []
        self._transfers: list[_Pending] = []

    def add(self, image: ImageState, latents: torch.Tensor) -> None:
        """Add the estimate of an image by the evaluation that is just done."""
        if image.cohort is None:
            # an image that had trouble takes part in no call with others
            self._waiting.append(_Pending(image, image.previews, image.evaluations_done, latents))
        image.previews += 1

    def advance(self) -> None:
        """Decode what waits. If it cannot be decoded, the partial image is left out.

        Raises:
            Exception: the device is lost to this process.
        """
        waiting, self._waiting = self._waiting, []
        for pending in waiting:
            try:
                size = self._group_size(pending.latents)
                [pending.transfer] = self._decoder.begin([pending.image], [pending.latents], size)
            except Exception as error:
                if device_errors.is_fatal(error):
                    raise
                log.warning("a partial image is left out: %s", first_line(error))
            else:
                self._transfers.append(pending)

    def take(self) -> list[Preview]:
        """Return the partial images that have reached the host, less those that are not finite or have one colour."""
        found = []
        while self._transfers and (transfer := self._transfers[0].transfer) and transfer.timer.arrived(wait=False):
            pending = self._transfers.pop(0)
            if all(transfer.validity.tolist()):
                image = pending.image
                found.append(
                    Preview(
                        job=image.job,
                        handle=image.handle,
                        number=pending.number,
                        step=pending.step,
                        steps=image.evaluations,
                        pixels=transfer.pixels,
                    )
                )
        return found

    def drop(self, handle: Hashable) -> None:
        """Drop those of an image."""
        self._waiting = [each for each in self._waiting if each.image.handle != handle]
        self._transfers = [each for each in self._transfers if each.image.handle != handle]

    def clear(self) -> None:
        """Drop all."""
        self._waiting.clear()
        self._transfers.clear()
