"""Decode finished latents in fixed-size groups, validate them on the device, copy them to the host asynchronously."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from latentfarm.errors import JobError
from latentfarm_worker import device_errors
from latentfarm_worker.engine.continuation import checkpoint_of
from latentfarm_worker.engine.device_call import DeviceCall, find_cause
from latentfarm_worker.engine.group_decoding import GroupDecoder, HostTransfer, validity_of
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.outcomes import Failed, Rendered, SecondStage, engine_error, first_line, out_of_memory
from latentfarm_worker.engine.second_stage import FirstImage
from latentfarm_worker.host_copy import send
from latentfarm_worker.models.base import Family

log = logging.getLogger(__name__)

#: steps that a finished image waits for others to fill its group
_MAX_WAIT_STEPS = 8
#: decoded images that are kept: a few have most colours, and are a few megabytes
_LAST_EXAMPLES = 4


@dataclass(eq=False)
class _PendingDecode:
    """Latents (C, h, w) of an image after its last step, and the steps that they have waited.

    ``is_frame``: they are an intermediate's. ``draft``: they are the estimate of a draft. ``limit_before``: the size of
    its groups before they were halved for this image among others; 0 if they were not.
    """

    image: ImageState
    latents: torch.Tensor
    is_frame: bool = False
    draft: _DraftState | None = None
    waited: int = 0
    limit_before: int = 0
    transfer: HostTransfer | None = None


@dataclass(frozen=True, eq=False)
class _DraftState:
    """What a draft goes on from: its ring columns and the latents of its intermediates (C, h, w)."""

    columns: dict[int, torch.Tensor]
    frames: tuple[torch.Tensor, ...]

    def received(self, receive: Callable[[torch.Tensor], torch.Tensor]) -> _DraftState:
        """Return it on its way to the host."""
        columns = {at: receive(column) for at, column in self.columns.items()}
        return _DraftState(columns, tuple(map(receive, self.frames)))


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image's finished latents (C, h, w), and its pixels, uint8 (H, W, 3) on the host."""

    latents: torch.Tensor
    pixels: torch.Tensor


class Decoder:
    """Decodes images in groups of a fixed size, so that an image's bytes do not depend on the others.

    A group has one size and one cohort. If memory runs out, the groups of a size are halved for good. An image that
    does not fit alone is decoded in tiles. If that does not fit either, its job fails, and the groups get the size that
    they had before: the job was the cause.

    Args:
        family: the model.
        call: records which images are decoded.
        group: images of the native size in a group.

    Attributes:
        examples: the first image that was decoded, which is that of the warm-up, and the last few.
    """

    def __init__(self, family: Family, call: DeviceCall, *, group: int = 1) -> None:
        self._family = family
        self._call = call
        self._group = group
        self._waiting: list[_PendingDecode] = []
        self._transfers: list[_PendingDecode] = []
        #: intermediates that have reached the host, uint8 (H, W, 3) each
        self._frames: dict[ImageState, list[torch.Tensor]] = {}
        #: by (height, width) of the latents: images in a group; 0 for one, in tiles
        self._limits: dict[tuple[int, int], int] = {}
        self.groups = GroupDecoder(family, call)
        self.examples: tuple[Decoded, ...] = ()

    @property
    def images(self) -> list[ImageState]:
        """Return the images that ``advance`` has not returned yet. Thread-safe."""
        pending = (*tuple(self._transfers), *tuple(self._waiting))
        return [*dict.fromkeys(each.image for each in pending)]

    @property
    def first_stages(self) -> dict[ImageState, torch.Tensor]:
        """Return the images that are decoded for their second stage, and their latents (C, h, w)."""
        pending = [each for each in (*self._transfers, *self._waiting) if not each.is_frame and each.draft is None]
        return {each.image: each.latents for each in pending if each.image.second is not None}

    def add(self, image: ImageState, latents: torch.Tensor) -> None:
        """Add an image after its last step, with its latents (C, h, w), which are copied, and its intermediates."""
        # an image's groups keep this order, so it reaches the host after its intermediates
        frames = (send(frame, latents.device) for frame in image.all_frames)
        self._waiting += [_PendingDecode(image, frame, is_frame=True) for frame in frames]
        self._waiting.append(_PendingDecode(image, latents.clone()))

    def add_draft(self, image: ImageState, estimate: torch.Tensor, columns: Mapping[int, torch.Tensor]) -> None:
        """Add a draft with its estimate (C, h, w) and its ring columns, which are copied."""
        state = _DraftState({at: column.clone() for at, column in columns.items()}, image.all_frames)
        self._waiting.append(_PendingDecode(image, estimate, draft=state))

    def drop(self, handle: Hashable) -> bool:
        """Drop an image; return whether it was here."""
        before = len(self._waiting) + len(self._transfers)
        self._waiting = [each for each in self._waiting if each.image.handle != handle]
        self._transfers = [each for each in self._transfers if each.image.handle != handle]
        self._frames = {image: frames for image, frames in self._frames.items() if image.handle != handle}
        return len(self._waiting) + len(self._transfers) < before

    def clear(self) -> None:
        """Drop every image."""
        self._waiting.clear()
        self._transfers.clear()
        self._frames.clear()

    def isolate(self, images: Sequence[ImageState], error: Exception) -> list[Failed]:
        """Fail the image whose fault it was, or decode each half of the images by itself."""
        if (cause := find_cause(images)) is not None:
            self.drop(cause.handle)
            return [Failed(cause.job, cause.handle, engine_error(error), retry=True)]
        for pending in self._waiting:
            if pending.image in images:
                # its group cannot fill up any more
                pending.waited = _MAX_WAIT_STEPS
        return []

    def advance(self, *, flush: bool) -> list[Rendered | Failed | FirstImage]:
        """Decode groups that are full or have waited long enough; return the images that have reached the host.

        ``flush``: decode and wait now. On an error, return the images finished so far; the next call raises it.
        """
        for pending in self._waiting:
            pending.waited += 1
        outcomes: list[Rendered | Failed | FirstImage] = []
        try:
            while group := self._next_group(flush=flush):
                outcomes += self._decode(group)
            self._collect(outcomes, wait=flush)
        except Exception:
            suspects = self._call.images
            with suppress(Exception):
                self._collect(outcomes, wait=True)
            if not outcomes:
                self._call.images = suspects
                raise
        return outcomes

    # -- groups ----------------------------------------------------------------------------------------------

    def group_size(self, latents: torch.Tensor) -> int:
        """Return the images in a group of these latents, 0 for one, in tiles."""
        height, width = latents.shape[1:]
        if (height, width) in self._limits:
            return self._limits[height, width]
        native = self._family.native_width * self._family.native_height // self._family.vae_scale_factor**2
        return max(1, self._group * native // max(native, height * width))

    def _next_group(self, *, flush: bool) -> list[_PendingDecode]:
        """Return the first image and others of its size and cohort, if the group is full or due.

        Interactive images come first, and are due at once.
        """
        if not self._waiting:
            return []
        waiting = sorted(self._waiting, key=lambda each: not each.image.interactive)
        oldest = waiting[0]
        shape, cohort = oldest.latents.shape, oldest.image.cohort
        alike = [each for each in waiting if each.latents.shape == shape and each.image.cohort == cohort]
        size = max(1, self.group_size(oldest.latents))
        due = flush or oldest.image.interactive or oldest.waited >= _MAX_WAIT_STEPS
        if len(alike) < size and not due:
            return []
        return alike[:size]

    def _decode(self, group: list[_PendingDecode]) -> list[Failed]:
        """Decode a group. If memory runs out, halve its size for the next try, or fail an image that is alone."""
        latents = group[0].latents
        size, message = self.group_size(latents), ""
        try:
            self._decode_async(group, size)
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            message = first_line(error)
        # outside the handler, whose traceback holds the decoder's tensors
        if message and latents.device.type == "cuda":
            torch.cuda.empty_cache()
        if message and size > 0:
            for pending in group:
                pending.limit_before = pending.limit_before or size
            self._limits[latents.shape[1], latents.shape[2]] = size // 2
            log.warning("%s: %d images in a group from now on; 0 means one, in tiles", message, size // 2)
            return []
        if not message:
            self._waiting = [pending for pending in self._waiting if pending not in group]
            return []
        # it did not fit in tiles either, so others need not be decoded in tiles because of it
        [pending] = group
        self._limits[latents.shape[1], latents.shape[2]] = pending.limit_before
        self.drop(pending.image.handle)
        return [Failed(pending.image.job, pending.image.handle, out_of_memory(message))]

    def _decode_async(self, group: list[_PendingDecode], size: int) -> None:
        """Decode a group, padded to its size, and begin its copy to the host."""
        for pending in group:
            if pending.draft is not None:
                # before the pixels, whose arrival is waited for
                pending.draft = pending.draft.received(self.groups.receive)
        images, latents = [pending.image for pending in group], [pending.latents for pending in group]
        for pending, transfer in zip(group, self.groups.begin(images, latents, size), strict=True):
            pending.transfer = transfer
        self._transfers += group

    # -- images ----------------------------------------------------------------------------------------------

    def _collect(self, outcomes: list[Rendered | Failed | FirstImage], *, wait: bool) -> None:
        """Append the images that have reached the host to ``outcomes``, in order."""
        while self._transfers:
            pending = self._transfers[0]
            self._call.images = [pending.image]
            assert pending.transfer is not None  # noqa: S101 (_decode_async set it)
            if not pending.transfer.timer.arrived(wait=wait):
                return
            if pending.is_frame:
                self._frames.setdefault(pending.image, []).append(pending.transfer.pixels)
            else:
                try:
                    outcomes.append(self._image(pending, pending.transfer))
                except JobError as error:
                    outcomes.append(Failed(pending.image.job, pending.image.handle, error))
                self._frames.pop(pending.image, None)
            self._transfers.pop(0)

    def _image(self, pending: _PendingDecode, transfer: HostTransfer) -> Rendered | FirstImage:
        """Return a draft, or the image of the only or a first stage."""
        image, draft = pending.image, pending.draft
        pixels, image.timings["decode"] = self._pixels(pending, transfer)
        if image.second is not None and draft is None:
            return FirstImage(image, pixels)
        begun, own = image.first, SecondStage(image.micro_batch, image.plan_digest)
        return Rendered(
            job=image.job,
            handle=image.handle,
            decoded=pixels,
            inputs=image.inputs,
            width=pixels.shape[1],
            height=pixels.shape[0],
            frames=tuple(self._frames.get(image, ())),
            scheduler=image.plan.scheduler,
            requested=(image.width, image.height) if begun is None else (begun.width, begun.height),
            second=None if begun is None else own,
            micro_batch=own.micro_batch if begun is None else begun.micro_batch,
            plan_digest=own.plan_digest if begun is None else begun.plan_digest,
            adapters=image.adapters,
            truncated=image.truncated,
            tokens=image.tokens,
            decode_group=max(1, transfer.group),
            tiled=transfer.group == 0,
            timings=image.all_timings,
            checkpoint=None if draft is None else checkpoint_of(self._family, image, draft.columns, draft.frames),
            spans=image.spans if image.interrupted else (),
            forked=image.forked,
            evaluations=image.evaluations,
            evaluations_made=image.evaluations_made,
        )

    def _pixels(self, pending: _PendingDecode, transfer: HostTransfer) -> tuple[torch.Tensor, float]:
        """Return pixels and the seconds they took. If they are not finite or blank, they are decoded again in float32.

        A draft may be blank: it is only an estimate.
        """
        latents, seconds, validity = pending.latents, transfer.timer.seconds, transfer.validity
        may_be_blank = pending.draft is not None
        try:
            _require_valid(validity, transfer.pixels)
            pixels = transfer.pixels
        except JobError:
            if self._family.vae_dtype == torch.float32 or not validity[0]:
                if may_be_blank and validity[:2].all():
                    return transfer.pixels, seconds
                raise
            began = time.perf_counter()
            pixels = self._decode_in_float32(latents)
            seconds += time.perf_counter() - began
        self.examples = (*self.examples[:1], *self.examples[1:][1 - _LAST_EXAMPLES :], Decoded(latents, pixels))
        return pixels, seconds

    def _decode_in_float32(self, latents: torch.Tensor) -> torch.Tensor:
        self._call.again()
        try:
            pixels, finite = self._family.decode(latents[None], float32=True)
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            raise out_of_memory(first_line(error)) from None
        _require_valid(validity_of(latents[None], pixels, finite)[0].cpu(), pixels[0])
        return pixels[0].cpu()


def _require_valid(validity: torch.Tensor, pixels: torch.Tensor) -> None:
    """Raise JobError unless all of ``validity`` (3,) is true."""
    finite_latents, finite, varied = validity.tolist()
    if not finite_latents:
        raise JobError(
            "non_finite", "the model's output is not finite; try another seed, less guidance or dtype float32"
        )
    if not finite:
        raise JobError("non_finite", "the VAE decoder's output is not finite; try another seed or dtype float32")
    if not varied:
        raise JobError("blank_image", f"every pixel is {pixels[0, 0].tolist()}; try another seed, or dtype float32")
