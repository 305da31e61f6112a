"""Fetch, decode, resize and encode the input images of jobs, each once while it is cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import ImageFilter

from latentfarm.edit_fields import Resize
from latentfarm.errors import InputError, JobError
from latentfarm.inputs.decoding import decode_image, decode_mask
from latentfarm.inputs.store import DIGEST_PREFIX, digest_of
from latentfarm.job import Job
from latentfarm.limits import MAX_INPUT_BYTES
from latentfarm.recent_cache import RecentCache
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import input_key
from latentfarm_worker import device_errors
from latentfarm_worker.engine.input_latents import PAINTED, require_inputs
from latentfarm_worker.engine.job_inputs import NO_INPUTS, JobInputs
from latentfarm_worker.engine.outcomes import first_line, out_of_memory
from latentfarm_worker.input_images.resizing import resize
from latentfarm_worker.models.base import Family
from latentfarm_worker.posterior import Posterior

#: bytes of files that are kept, for images that are used at several sizes, and of what was made of them
_FILE_BYTES, _MADE_BYTES = 128 * 2**20, 512 * 2**20


class InputItem(NamedTuple):
    """One input image as a job uses it; jobs that use it alike have equal items.

    ``field``: the job's field. ``width``, ``height``: pixels that it gets; 0 leaves it as it is. ``blur``: pixels of
    the blur of a mask.
    """

    field: str
    digest: str
    width: int = 0
    height: int = 0
    resize: Resize | None = None
    blur: int = 0


class MadeInput(NamedTuple):
    """What is made of an input: uint8 (H, W, 3), or float32 (H, W) of a mask; and its latents, if they are used."""

    samples: torch.Tensor
    posterior: Posterior | None = None

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensors."""
        return sum(tensor.nbytes for tensor in (self.samples, *(self.posterior or ())))


class InputReader:
    """Makes the inputs of jobs on the calling thread. Thread-safe.

    Args:
        bucket: has the input images.
        family: the model that they are made for.
    """

    def __init__(self, bucket: Bucket, family: Family) -> None:
        self._bucket = bucket
        self._family = family
        self._files: RecentCache[str, bytes] = RecentCache(_FILE_BYTES, size=len)
        #: by input; by image and mask, the latents of what the mask keeps
        self._made: RecentCache[tuple[InputItem, ...], MadeInput] = RecentCache(
            _MADE_BYTES, size=lambda made: made.nbytes
        )

    def items(self, job: Job) -> list[InputItem]:
        """Return the inputs that a job uses, each once.

        Raises:
            JobError: as ``require_inputs``.
        """
        require_inputs(self._family, job)
        return list(dict.fromkeys(self._uses(job)))

    def cached(self, item: InputItem) -> MadeInput | None:
        """Return what was made of an input, if it is kept."""
        return self._made.get((item,))

    def make(self, item: InputItem) -> MadeInput:
        """Fetch, decode, resize and encode an input.

        Raises:
            JobError: code ``input_changed``, ``input_too_large``, ``input_invalid`` or ``input_size``; ``oom``.
            MissingObjectError: it is not in the bucket.
            UnavailableError: the bucket does not answer, or the model's weights have left the device.
        """
        made = self._made.get((item,))
        if made is None:
            made = self._make(item)
            self._made.put((item,), made)
        return made

    def assemble(self, job: Job, made: Mapping[InputItem, MadeInput]) -> JobInputs:
        """Return the inputs of a job from what was made of each.

        Raises:
            JobError: code ``oom``.
            UnavailableError: the model's weights have left the device.
        """
        if not job.input_digests:
            return NO_INPUTS
        uses = self._uses(job)
        items = {item.field: item for item in uses}
        image, mask = (made[items[field]] if field in items else None for field in ("image", "mask_image"))
        masked = None
        if image is not None and mask is not None and self._family.required_inputs:
            masked = self._masked((items["image"], items["mask_image"]), image.samples, mask.samples)
        return JobInputs(
            image=image and image.samples,
            posterior=image and image.posterior,
            mask=mask and mask.samples,
            masked=masked and masked.posterior,
            controls=tuple(made[item].samples for item in uses if item.field == "control_image"),
            image_prompts=tuple(made[item].samples for item in uses if item.field == "ip_adapter_image"),
        )

    def read(self, job: Job) -> JobInputs:
        """Return the inputs of a job; an outage of the bucket is its error.

        Raises:
            JobError: one of them cannot be used.
            UnavailableError: the bucket does not answer.
        """
        try:
            return self.assemble(job, {item: self.make(item) for item in self.items(job)})
        except MissingObjectError as error:
            raise JobError("input_missing", str(error)) from None

    def _uses(self, job: Job) -> list[InputItem]:
        """Return the item of each use of an input, in the order of the job's fields."""
        width, height = job.width or self._family.native_width, job.height or self._family.native_height
        found = []
        if job.image is not None:
            found.append(InputItem("image", job.image, width, height, job.resize))
        if job.mask_image is not None:
            found.append(InputItem("mask_image", job.mask_image, width, height, job.resize, job.mask_blur))
        found += [InputItem("control_image", net.image, width, height, job.resize) for net in job.controls]
        found += [InputItem("ip_adapter_image", prompt.image) for prompt in job.image_prompts]
        return found

    def _make(self, item: InputItem) -> MadeInput:
        body = self._fetch(item)
        is_mask = item.field == "mask_image"
        try:
            image = decode_mask(body) if is_mask else decode_image(body)
        except InputError as error:
            raise JobError("input_invalid", f"{_name(item)} {error}") from None
        if item.width:
            try:
                # the padding of a mask is painted again
                fill = 255 if is_mask else None
                image = resize(image, item.width, item.height, item.resize, fill=fill)
            except JobError as error:
                raise JobError(error.code, f"{_name(item)}: {error}") from None
        if is_mask:
            if item.blur:
                image = image.filter(ImageFilter.GaussianBlur(item.blur))
            return MadeInput(torch.from_numpy(np.array(image)).float() / 255.0)
        pixels = torch.from_numpy(np.array(image))
        if item.field != "image":
            return MadeInput(pixels)
        return MadeInput(pixels, _within_memory(lambda: self._family.encode_image(pixels)))

    def _fetch(self, item: InputItem) -> bytes:
        body = self._files.get(item.digest)
        if body is not None:
            return body
        try:
            body = self._bucket.get(input_key(item.digest), max_bytes=MAX_INPUT_BYTES)
        except InputError:
            raise JobError(
                "input_too_large",
                f"{_name(item)} has more bytes than the {MAX_INPUT_BYTES:,} that are allowed: store it smaller",
            ) from None
        found = digest_of(body)
        if item.digest != found:
            hex_digits = found.removeprefix(DIGEST_PREFIX)
            raise JobError(
                "input_changed",
                f"{_name(item)}: the object {input_key(item.digest)} has the sha256 {hex_digits}; submit the row again",
            )
        self._files.put(item.digest, body)
        return body

    def _masked(self, items: tuple[InputItem, ...], pixels: torch.Tensor, mask: torch.Tensor) -> MadeInput:
        """Return what a mask keeps, bool (H, W), and the latents of the image without what is painted again."""
        found = self._made.get(items)
        if found is None:
            kept = mask < PAINTED
            found = MadeInput(kept, _within_memory(lambda: self._family.encode_image(pixels, kept)))
            self._made.put(items, found)
        return found


def _within_memory(encode: Callable[[], Posterior]) -> Posterior:
    """Encode an image; what does not fit twice is the error of its job alone.

    Raises:
        JobError: code ``oom``.
    """
    for last in (False, True):
        try:
            return encode()
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            message = first_line(error)
        # outside the handler, whose traceback holds the encoder's tensors
        if last:
            break
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise out_of_memory(message)


def _name(item: InputItem) -> str:
    return f"{item.field} {item.digest}"
