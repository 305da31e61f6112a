"""Micro-batches: the fixed number of rows with which the model is called.

A row's numbers depend on the number of rows in a call: libraries select other kernels for other sizes, which add in
another order. They do not depend on the other rows. So the model is always called with the same number of rows, as
often as a step needs, and an image has the same bytes in any company. The last micro-batch is padded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.host_copy import send
from latentfarm_worker.models.text_encoder import Tensors

#: a row of a micro-batch: its image and which of the image's prompts it has
_Row = tuple[ImageState, int]


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one call of the model.

    Attributes:
        images: the images that have a row here.
        text_chunks: chunks of 77 tokens in each prompt.
        indices: int64 (3, rows) on the device, in this order: the place of each row's image; the place that the row
            updates, which is an unused one for negative prompts and padding; the row with the negative prompt, which is
            the row itself if there is none.
        conditioning: the model's inputs by name, (rows, ...) each.
    """

    images: tuple[ImageState, ...]
    text_chunks: int
    indices: torch.Tensor
    conditioning: Tensors

    @property
    def rows(self) -> int:
        """Return the rows of the call, padding included."""
        return self.indices.shape[1]


def form(
    images: Iterable[ImageState],
    conditioning: Mapping[ImageState, Sequence[Tensors]],
    *,
    rows: int,
    pad: bool,
    unused: int,
    device: torch.device,
) -> list[MicroBatch]:
    """Return the micro-batches of one step: images with prompts of one length together.

    Args:
        images: the running images.
        conditioning: by image, the tensors of each of its prompts, without a dimension for rows.
        rows: rows of a micro-batch, an even number.
        pad: whether the last micro-batch gets the full number of rows.
        unused: a place without an image.
        device: the device of the indices.
    """
    found = []
    for text_chunks, group in _rows_by_text_length(images):
        for at in range(0, len(group), rows):
            part = group[at : at + rows]
            indices = [_indices(part, unused)]
            count = rows if pad else len(part)
            # padding repeats a row, so that its numbers are as usual
            padded = [*part, *[part[0]] * (count - len(part))]
            indices.append(torch.tensor([[part[0][0].place], [unused], [0]]).expand(3, count - len(part)))
            tensors = [conditioning[image][prompt] for image, prompt in padded]
            found.append(
                MicroBatch(
                    images=tuple(dict.fromkeys(image for image, _ in part)),
                    text_chunks=text_chunks,
                    indices=send(torch.cat(indices, dim=1), device),
                    conditioning={name: torch.stack([each[name] for each in tensors]) for name in tensors[0]},
                )
            )
    return found


def _rows_by_text_length(images: Iterable[ImageState]) -> Iterator[tuple[int, list[_Row]]]:
    """Yield the rows of the images with each number of text chunks.

    Images with two rows come first. So none is cut in two: a micro-batch has an even number of rows.
    """
    groups: dict[int, list[_Row]] = defaultdict(list)
    for image in sorted(images, key=lambda image: (-image.rows_computed, image.place)):
        groups[image.text_chunks] += [(image, prompt) for prompt in range(image.rows_computed)]
    yield from sorted(groups.items())


def _indices(rows: Sequence[_Row], unused: int) -> torch.Tensor:
    """Return the indices of rows without padding, as ``MicroBatch.indices``, on the host."""
    return torch.tensor(
        [
            [image.place for image, _ in rows],
            [unused if prompt else image.place for image, prompt in rows],
            [at + 1 if not prompt and image.rows_computed > 1 else at for at, (image, prompt) in enumerate(rows)],
        ]
    )
