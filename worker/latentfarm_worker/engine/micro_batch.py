"""Micro-batches: the fixed number of rows with which the model is called.

A row's numbers depend on the number of rows in a call: libraries select other kernels for other sizes, which add in
another order. They do not depend on the other rows. So the model is always called with the same number of rows, as
often as a step needs, and an image has the same bytes in any company. The last micro-batch is padded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.host_copy import send
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.text_encoders.prompt import Tensors

#: rows of a micro-batch unless they are given: the fewest with which a CPU and a GPU reach most of their rate
_ROWS = 8
#: a row of a micro-batch: its image and which of the image's prompts it has
_Row = tuple[ImageState, int]


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one call of the model.

    Attributes:
        images: the images that have a row here.
        indices: int64 (3, rows) on the device, in this order: the place of each row's image; the place that the row
            updates, which is an unused one for negative prompts and padding; the row with the negative prompt, which is
            the row itself if there is none.
        conditioning: the model's inputs by name, (rows, ...) each.
    """

    images: tuple[ImageState, ...]
    indices: torch.Tensor
    conditioning: Tensors


def rows_of_call(rows: int, shape: LatentShape, native: LatentShape, *, most: int) -> int:
    """Return the rows of a call of the model with images of ``shape``, an even number from 2, at most ``most``.

    ``rows`` are those at the native size; larger images have fewer, in inverse proportion to their area.
    """
    return max(2, min(rows, rows * native.area // shape.area, most) // 2 * 2)


def form(
    images: Iterable[ImageState],
    conditioning: Mapping[ImageState, Sequence[Tensors]],
    *,
    rows: int,
    pad: bool,
    unused: int,
    device: torch.device,
) -> list[MicroBatch]:
    """Return the micro-batches of one step: images of one text class and with the same conditioning together.

    So a row of a model's own inputs is in no call with one of a LoRA or a ControlNet, which would cost it time.

    Args:
        images: the running images.
        conditioning: by image, the tensors of each of its prompts, without a dimension for rows.
        rows: rows of a micro-batch, an even number.
        pad: whether the last micro-batch gets the full number of rows.
        unused: a place without an image.
        device: the device of the indices.
    """
    found = []
    for group in _rows_by_inputs(images, conditioning):
        for at in range(0, len(group), rows):
            part = group[at : at + rows]
            # padding repeats a row, so that its numbers are as usual
            padded = [*part, *[part[0]] * (rows - len(part))] if pad else part
            tensors = [conditioning[image][prompt] for image, prompt in padded]
            found.append(
                MicroBatch(
                    images=tuple(dict.fromkeys(image for image, _ in part)),
                    indices=send(_indices(padded, len(part), unused), device),
                    conditioning={name: torch.stack([each[name] for each in tensors]) for name in tensors[0]},
                )
            )
    return found


def checked_rows(rows: int | None, *, slots: int) -> int:
    """Return the rows of a micro-batch at the native size [default: 8, or those of all slots if they are fewer].

    Raises:
        ValueError: they are not an even number from 2, or there is no slot.
    """
    if slots < 1:
        raise ValueError(f"slots is {slots}; write 1 or more")
    rows = min(_ROWS, 2 * slots) if rows is None else rows
    if rows < 2 or rows % 2:
        raise ValueError(f"micro_batch is {rows}; write an even number from 2")
    return rows


def _rows_by_inputs(
    images: Iterable[ImageState], conditioning: Mapping[ImageState, Sequence[Tensors]]
) -> Iterable[list[_Row]]:
    """Return the rows of the images of each text class and set of conditioning tensors.

    Images with two rows come first. So none is cut in two: a micro-batch has an even number of rows.
    """
    groups: dict[tuple[int, frozenset[str]], list[_Row]] = defaultdict(list)
    for image in sorted(images, key=lambda image: (image.text_class, -image.rows_computed, image.place)):
        key = image.text_class, frozenset(conditioning[image][0])
        groups[key] += [(image, prompt) for prompt in range(image.rows_computed)]
    return groups.values()


def _indices(rows: Sequence[_Row], count: int, unused: int) -> torch.Tensor:
    """Return ``MicroBatch.indices`` on the host; rows from ``count`` on are padding."""
    return torch.tensor(
        [
            [image.place for image, _ in rows],
            [unused if prompt or at >= count else image.place for at, (image, prompt) in enumerate(rows)],
            [at + (at < count and not prompt and image.rows_computed > 1) for at, (image, prompt) in enumerate(rows)],
        ]
    )
