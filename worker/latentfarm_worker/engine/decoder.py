"""After the last step: latents to pixels in groups, looked at on the device, copied off it while the next steps run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker import device_errors
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.models.base import Family

log = logging.getLogger(__name__)

#: pictures of the native size in one call of a decoder; a CPU gains nothing by more than one
_GROUP = {"cuda": 8}
#: steps that a finished image waits for others to be decoded with
_PATIENCE = 8


@dataclass(frozen=True)
class Rendered:
    """A finished picture.

    ``pixels``: uint8 (height, width, 3) on the CPU. ``scheduler``: diffusers' class name. ``slots``: those of an
    engine that gives the same bytes. ``truncated``: which of ``prompt`` and ``negative_prompt`` lost their end.
    ``tiled``: whether it was decoded in tiles, for want of memory. ``timings``: seconds of ``text``, ``denoise`` (on
    the wall, from admission to the last step) and ``decode`` (its share of the group's).
    """

    job: Job
    pixels: torch.Tensor
    width: int
    height: int
    scheduler: str
    slots: int
    plan_digest: str
    truncated: tuple[str, ...]
    tiled: bool
    timings: dict[str, float]


@dataclass(frozen=True)
class Failed:
    """A job that failed by its own fault; its neighbours did not notice."""

    job: Job
    error: JobError


@dataclass(frozen=True)
class _Copy:
    """A picture on its way off the device: uint8 (H, W, 3), bool (3,) and, on a GPU, what tells that they are here."""

    pixels: torch.Tensor
    marks: torch.Tensor
    tiled: bool
    clock: _Clock


@dataclass
class _Finished:
    """An image whose last step is made; ``waited``: the engine's steps since."""

    image: ImageState
    latents: torch.Tensor
    waited: int = 0
    copy: _Copy | None = None


class Decoder:
    """Takes finished latents and gives pictures, a fixed number at a time, so that a picture's bytes are its own.

    Where memory runs out, the groups of a size are halved for good; a picture that does not fit alone is decoded in
    tiles, and fails only if that does not fit either.
    """

    def __init__(self, family: Family, *, on_call: Callable[[], None]) -> None:
        self._family = family
        self._on_call = on_call
        self._waiting: list[_Finished] = []
        self._leaving: list[_Finished] = []
        #: by (height, width) of the latents: pictures in a group; 0 for one, in tiles
        self._limits: dict[tuple[int, int], int] = {}
        self._stream: torch.cuda.Stream | None = None
        if family.device.type == "cuda":
            self._stream = torch.cuda.Stream(family.device)  # type: ignore[no-untyped-call]

    @property
    def images(self) -> list[ImageState]:
        """The images that are not handed out yet; any thread may ask."""
        return [finished.image for finished in (*tuple(self._leaving), *tuple(self._waiting))]

    def add(self, image: ImageState, latents: torch.Tensor) -> None:
        """Take an image whose last step is made, with its latents (C, h, w), which are copied."""
        self._waiting.append(_Finished(image, latents.clone()))

    def drop(self, name: str) -> bool:
        """Forget the job ``name``; return whether it was here."""
        for queue in (self._waiting, self._leaving):
            for finished in queue:
                if finished.image.job.name == name:
                    queue.remove(finished)
                    return True
        return False

    def clear(self) -> list[Job]:
        """Forget everything; return those jobs."""
        jobs = [image.job for image in self.images]
        self._waiting.clear()
        self._leaving.clear()
        return jobs

    def advance(self, *, hurry: bool) -> list[Rendered | Failed]:
        """Decode what makes a full group, or has waited long enough; return what has left the device.

        ``hurry``: nothing else is to be done meanwhile. If something breaks, what was finished before counts first, and
        the next call meets the error again.
        """
        for finished in self._waiting:
            finished.waited += 1
        outcomes: list[Rendered | Failed] = []
        try:
            while group := self._next_group(hurry=hurry):
                outcomes += self._decode(group)
            self._collect(outcomes, wait=hurry)
        except Exception:
            with suppress(Exception):
                self._collect(outcomes, wait=True)
            if not outcomes:
                raise
        return outcomes

    # -- groups ----------------------------------------------------------------------------------------------

    def _group_size(self, latents: torch.Tensor) -> int:
        height, width = latents.shape[1:]
        if (height, width) in self._limits:
            return self._limits[height, width]
        native = self._family.native_width * self._family.native_height // self._family.vae_scale_factor**2
        return max(1, _GROUP.get(self._family.device.type, 1) * native // max(native, height * width))

    def _next_group(self, *, hurry: bool) -> list[_Finished]:
        """Return the oldest image and those of its size that fill its group, if it is time."""
        if not self._waiting:
            return []
        oldest = self._waiting[0]
        alike = [finished for finished in self._waiting if finished.latents.shape == oldest.latents.shape]
        size = max(1, self._group_size(oldest.latents))
        if len(alike) < size and oldest.waited < _PATIENCE and not hurry:
            return []
        return alike[:size]

    def _decode(self, group: list[_Finished]) -> list[Failed]:
        """Decode a group; where memory runs out, remember it for the next try, or give up a job that is alone."""
        latents = group[0].latents
        size, message = self._group_size(latents), ""
        try:
            self._send_off(group, size)
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            message = str(error).partition("\n")[0]
        # out here, where no traceback holds the decoder's tensors any more
        if message and latents.device.type == "cuda":
            torch.cuda.empty_cache()
        if message and size > 0:
            self._limits[latents.shape[1], latents.shape[2]] = size // 2
            log.warning("%s: %d pictures in a group from now on, 0 is one in tiles", message, size // 2)
            return []
        self._waiting = [finished for finished in self._waiting if finished not in group]
        return [Failed(finished.image.job, out_of_memory(message)) for finished in group if message]

    def _send_off(self, group: list[_Finished], size: int) -> None:
        """Decode a group, padded to its size, and begin to copy it off the device."""
        clock = _Clock(self._family.device, pictures=len(group))
        self._on_call()
        latents = [finished.latents for finished in group]
        stacked = torch.stack([*latents, *[torch.zeros_like(latents[0])] * (size - len(group))])
        pixels, finite = self._family.decode(stacked, tiled=True) if size == 0 else self._family.decode(stacked)
        marks = _marks(stacked, pixels, finite)
        clock.decoded()
        if self._stream is not None:
            pixels, marks = _copy_off(pixels, self._stream), _copy_off(marks, self._stream)
        clock.copied(self._stream)
        for at, finished in enumerate(group):
            finished.copy = _Copy(pixels[at], marks[at], tiled=size == 0, clock=clock)
        self._leaving += group

    # -- pictures --------------------------------------------------------------------------------------------

    def _collect(self, outcomes: list[Rendered | Failed], *, wait: bool) -> None:
        """Add what has left the device to ``outcomes``, in order."""
        while self._leaving:
            finished = self._leaving[0]
            assert finished.copy is not None  # noqa: S101 (it was sent off)
            if not finished.copy.clock.arrived(wait=wait):
                return
            try:
                outcomes.append(self._picture(finished.image, finished.latents, finished.copy))
            except JobError as error:
                outcomes.append(Failed(finished.image.job, error))
            self._leaving.pop(0)

    def _picture(self, image: ImageState, latents: torch.Tensor, copy: _Copy) -> Rendered:
        """Return a picture; what is none is decoded once more, with the VAE in float32."""
        seconds = copy.clock.seconds
        try:
            _check(copy.marks, copy.pixels)
            pixels = copy.pixels
        except JobError:
            if self._family.vae_dtype == torch.float32 or not copy.marks[0]:
                raise
            began = time.perf_counter()
            pixels = self._in_float32(latents)
            seconds += time.perf_counter() - began
        return Rendered(
            job=image.job,
            pixels=pixels,
            width=pixels.shape[1],
            height=pixels.shape[0],
            scheduler=image.plan.scheduler,
            slots=image.slots,
            plan_digest=image.plan.digest,
            truncated=image.truncated,
            tiled=copy.tiled,
            timings={**image.timings, "decode": seconds},
        )

    def _in_float32(self, latents: torch.Tensor) -> torch.Tensor:
        self._on_call()
        try:
            pixels, finite = self._family.decode(latents[None], float32=True)
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            raise out_of_memory(str(error).partition("\n")[0]) from None
        _check(_marks(latents[None], pixels, finite)[0].cpu(), pixels[0])
        return pixels[0].cpu()


class _Clock:
    """When a group was decoded and has left the device: by the device's own events where it runs ahead of the host."""

    def __init__(self, device: torch.device, *, pictures: int) -> None:
        self._pictures = pictures
        self._began = time.perf_counter()
        self._seconds = 0.0
        self._events: list[torch.cuda.Event] = []
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]  # type: ignore[no-untyped-call]
            self._events[0].record()

    def decoded(self) -> None:
        if self._events:
            self._events[1].record()
        self._seconds = time.perf_counter() - self._began

    def copied(self, stream: torch.cuda.Stream | None) -> None:
        if self._events:
            self._events[2].record(stream)

    def arrived(self, *, wait: bool) -> bool:
        """Return whether the copy is here."""
        if self._events and wait:
            self._events[2].synchronize()
        return not self._events or bool(self._events[2].query())  # type: ignore[no-untyped-call]

    @property
    def seconds(self) -> float:
        """One picture's share of the decoder's time, once it is here."""
        if self._events:
            return float(self._events[0].elapsed_time(self._events[1])) / 1000 / self._pictures
        return self._seconds / self._pictures


def _copy_off(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Begin to copy to the host's pinned memory beside what the device does next."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
    # or the memory might be given to somebody else while it is still read
    tensor.record_stream(stream)
    return host


def _marks(latents: torch.Tensor, pixels: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """Return bool (N, 3): the latents are finite, what the decoder gave is, and the picture is not of one colour.

    No sampled picture is so even to the last bit: it is black, as a decoder that overflowed leaves it, or flat.
    """
    sound = torch.isfinite(latents).flatten(1).all(dim=1)
    varied = (pixels != pixels[:, :1, :1]).flatten(1).any(dim=1)
    return torch.stack([sound, finite, varied], dim=1)


def _check(marks: torch.Tensor, pixels: torch.Tensor) -> None:
    """Raise JobError unless the marks (3,) are those of a picture."""
    sound, finite, varied = marks.tolist()
    if not sound:
        raise JobError("nan", "the model's output was not finite; try another seed, less guidance or dtype float32")
    if not finite:
        raise JobError("nan", "the VAE decoder gave numbers that are not finite; try another seed or dtype float32")
    if not varied:
        raise JobError("flat", f"every pixel is {pixels[0, 0].tolist()}; try another seed, or dtype float32")


def out_of_memory(message: str) -> JobError:
    """Return the error of a job that does not fit alone."""
    cure = "render it smaller, or on a device with more memory"
    return JobError("oom", f"not enough memory for this job alone ({message}); {cure}")
