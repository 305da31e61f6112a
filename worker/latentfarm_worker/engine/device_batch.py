"""The rows of the batch and the images that own them: what is resident, and one denoising step of all of it.

A row is one line of the model's batch. An image's first row also keeps its past, in float32: the last HISTORY
samples x and model outputs m as rings (x[i] at place i mod HISTORY), and the step's noise. So a step moves no past
around; the coefficients are laid out to match the rings instead. An image's whole plan lies beside its past, and each
row counts its own calls: a step asks the host for nothing but the noise of schedulers that draw some.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch

from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.sampling_plan import COLUMNS, HISTORY
from latentfarm_worker.models.base import Family, LatentShape
from latentfarm_worker.models.text_encoder import Tensors

_NOISE = COLUMNS - 1
#: columns of a row's table before the plan's coefficients
_TIMESTEP, _INPUT_SCALE, _GUIDANCE, _GUIDED, _COEFFICIENTS = range(5)
#: calls that a table has room for at first
_CALLS = 64


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a host's tensor on the device, without waiting for what the device does meanwhile."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class DeviceBatch:
    """Rows for latents of one ``shape``; ``free`` are those without an image.

    ``counts``: with how many rows the model may be called, in rising order; the last is how many there are. It sees
    those whose output is wanted, and as many others as the next of these counts asks for.
    """

    def __init__(self, family: Family, shape: LatentShape, counts: Sequence[int]) -> None:
        self.family = family
        self.shape = shape
        self.count = count = counts[-1]
        self.free = list(range(count))
        self._counts = counts
        #: rows of images whose guidance begins later
        self._resting: set[int] = set()
        device = self._device = family.device
        self._past = torch.zeros((count, COLUMNS, family.latent_channels, shape.height, shape.width), device=device)
        self._table = torch.zeros((count, _CALLS, _COEFFICIENTS + COLUMNS), device=device)
        self._calls = torch.zeros(count, dtype=torch.int64, device=device)
        self._every = torch.arange(count, device=device)
        #: of each row the one with its image's past, and for that one the row without the prompt; itself where none is
        self._owner, self._other = self._every.clone(), self._every.clone()
        self._in_use = torch.zeros(count, dtype=torch.int64, device=device)
        #: by name, (count, ...); what there is, is known with the first texts
        self._told: dict[str, torch.Tensor] = {}
        #: the rows that the model sees, None for all, and what they are told
        self._seen: torch.Tensor | None = None
        self._told_seen: Tensors = self._told

    def take(self, image: ImageState, told: Sequence[Tensors], latents: torch.Tensor) -> None:
        """Give an image a row for each of its prompts, of which ``told`` tells, and its first latents (C, h, w)."""
        image.rows = tuple(self.free[: len(told)])
        del self.free[: len(told)]
        table = image.table()
        if len(table) > self._table.shape[1]:
            more = torch.zeros((self.count, len(table) - self._table.shape[1], table.shape[1]), device=self._device)
            self._table = torch.cat([self._table, more], dim=1)
        first, last = image.rows[0], image.rows[-1]
        self._past[first] = 0.0
        self._past[first, 0] = send(latents, self._device)
        self._table[first, : len(table)] = send(table, self._device)
        self._other[first] = last
        for row, tensors in zip(image.rows, told, strict=True):
            self._owner[row] = first
            self._calls[row] = 0
            self._in_use[row] = 1
            for name, tensor in tensors.items():
                if name not in self._told:
                    self._told[name] = tensor.new_zeros((self.count, *tensor.shape))
                self._told[name][row] = tensor
        if image.guided.start > 0:
            self._resting.update(image.rows[1:])
        self._choose_seen()

    def give_back(self, rows: Sequence[int]) -> None:
        """Free rows of an image; the first one only with all of them."""
        self._resting.difference_update(rows)
        for row in rows:
            bisect.insort(self.free, row)
            self._owner[row] = self._other[row] = row
            self._in_use[row] = 0
            self._calls[row] = 0
            self._table[row] = 0.0
        self._choose_seen()

    def wake(self, image: ImageState) -> None:
        """Have the model see the rows of an image whose guidance begins."""
        self._resting.difference_update(image.rows)
        self._choose_seen()

    def shrink(self, image: ImageState) -> None:
        """Free the rows of an image that needs guidance no more, but for its first."""
        first, *others = image.rows
        self._other[first] = first
        self.give_back(others)
        image.rows = (first,)

    def latents(self, image: ImageState) -> torch.Tensor:
        """Return a view of an image's latents, (C, h, w)."""
        return self._past[image.rows[0], image.call % HISTORY]

    def denoise(self, images: Sequence[ImageState]) -> None:
        """Make one call of the model for every image and the update of its latents."""
        self._draw([image for image in images if image.plan.draws[image.call]])
        calls = self._calls[self._owner]
        line = self._table[self._owner, calls]
        place = calls % HISTORY
        inputs = _wide(line[:, _INPUT_SCALE]) * self._past[self._owner, place]
        output = self._predict(inputs, line[:, _TIMESTEP].contiguous())
        other = torch.where(line[:, _GUIDED] > 0, self._other, self._every)
        unguided = output[other]
        self._past[self._every, HISTORY + place] = unguided + _wide(line[:, _GUIDANCE]) * (output - unguided)
        coefficients = line[:, _COEFFICIENTS:, None, None, None]
        self._past[self._every, (place + 1) % HISTORY] = (coefficients * self._past).sum(dim=1)
        self._calls += self._in_use

    def _draw(self, images: Sequence[ImageState]) -> None:
        """Put the next noise of each image's own generator in place."""
        if images:
            shape = (1, *self._past.shape[2:])
            noise = torch.cat([torch.randn(shape, generator=image.generator) for image in images])
            rows = torch.tensor([image.rows[0] for image in images])
            self._past[send(rows, self._device), _NOISE] = send(noise, self._device)

    def _predict(self, inputs: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the model's output for all rows, float32 (count, C, h, w); zeros for rows left out."""
        if self._seen is None:
            return self.family.predict(inputs, timesteps, self._told)
        output = torch.zeros_like(inputs)
        output[self._seen] = self.family.predict(inputs[self._seen], timesteps[self._seen], self._told_seen)
        return output

    def _choose_seen(self) -> None:
        """Have the model see the rows whose output is wanted and, where the counts ask for more, others."""
        others = [*self._resting, *self.free]
        wanted = self.count - len(others)
        seen = next(count for count in self._counts if count >= wanted)
        if seen == self.count:
            self._seen, self._told_seen = None, self._told
            return
        unseen = set(others[seen - wanted :])
        self._seen = send(torch.tensor([row for row in range(self.count) if row not in unseen]), self._device)
        self._told_seen = {name: tensor[self._seen] for name, tensor in self._told.items()}


def _wide(numbers: torch.Tensor) -> torch.Tensor:
    """Return (R,) as (R, 1, 1, 1)."""
    return numbers[:, None, None, None]
