"""GPU-resident state of all running images, and one denoising step over it.

A row is one line of the model's batch. An image's first row also keeps its history, in float32: the last HISTORY
samples x and model outputs m as rings (x[i] at place i mod HISTORY), and the step's noise. So a step moves no history;
the coefficients are laid out to match the rings instead. An image's whole plan is stored beside its history, and each
row counts its own steps. So a step copies nothing from the host but the noise of stochastic schedulers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.sampling_plan import COLUMNS, HISTORY
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.base import Family
from latentfarm_worker.models.text_encoder import Tensors

_NOISE = COLUMNS - 1
#: columns of a row's table before the plan's coefficients
_TIMESTEP, _INPUT_SCALE, _GUIDANCE, _GUIDED, _COEFFICIENTS = range(5)
#: evaluations that a table holds at first
_EVALUATIONS = 64


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy of a host tensor on the device, without waiting for the device's queue."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class DeviceBatch:
    """The rows of a batch of one latent ``shape``.

    ``sizes`` are the batch sizes that the model may be called with, in rising order; the last is the number of rows.
    The model computes the active rows, and inactive ones as padding up to the next of these sizes.
    """

    def __init__(self, family: Family, shape: LatentShape, sizes: Sequence[int]) -> None:
        self.family = family
        self.shape = shape
        self.count = count = sizes[-1]
        self._sizes = sizes
        #: rows that belong to an image, and those of them whose output the next step needs
        self._allocated, self._active = [False] * count, [False] * count
        device = self._device = family.device
        self._history = torch.zeros((count, COLUMNS, family.latent_channels, shape.height, shape.width), device=device)
        self._table = torch.zeros((count, _EVALUATIONS, _COEFFICIENTS + COLUMNS), device=device)
        self._step_index = torch.zeros(count, dtype=torch.int64, device=device)
        self._every = torch.arange(count, device=device)
        #: by row: the row with its image's history; for that row, the row of the negative prompt; else the row itself
        self._owner, self._negative = self._every.clone(), self._every.clone()
        self._in_use = torch.zeros(count, dtype=torch.int64, device=device)
        #: conditioning tensors by name, (count, ...); allocated when the first prompt arrives
        self._conditioning: dict[str, torch.Tensor] = {}
        #: the rows that the model computes (None: all) and their conditioning; selected again when ``_stale``
        self._computed: torch.Tensor | None = None
        self._computed_conditioning: Tensors = self._conditioning
        self._stale = True

    @property
    def free(self) -> list[int]:
        """Return the rows without an image."""
        return [row for row, allocated in enumerate(self._allocated) if not allocated]

    def is_whole(self, images: Sequence[ImageState]) -> bool:
        """Return whether every row is either free or owned by exactly one of the running images."""
        owned = [row for image in images for row in image.rows]
        return sorted([*owned, *self.free]) == list(range(self.count))

    def allocate(self, image: ImageState, conditioning: Sequence[Tensors], latents: torch.Tensor) -> None:
        """Give an image one row for each of its prompts.

        Args:
            image: the image; its ``rows`` are set.
            conditioning: the tensors of each prompt, without a dimension for rows.
            latents: the initial latents, (C, h, w).
        """
        image.rows = tuple(self.free[: len(conditioning)])
        table = image.table()
        if len(table) > self._table.shape[1]:
            more = torch.zeros((self.count, len(table) - self._table.shape[1], table.shape[1]), device=self._device)
            self._table = torch.cat([self._table, more], dim=1)
        first, last = image.rows[0], image.rows[-1]
        self._history[first] = 0.0
        self._history[first, 0] = send(latents, self._device)
        self._table[first, : len(table)] = send(table, self._device)
        self._negative[first] = last
        for row, tensors in zip(image.rows, conditioning, strict=True):
            self._owner[row] = first
            self._step_index[row] = 0
            self._in_use[row] = 1
            for name, tensor in tensors.items():
                if name not in self._conditioning:
                    self._conditioning[name] = tensor.new_zeros((self.count, *tensor.shape))
                self._conditioning[name][row] = tensor
            self._allocated[row] = True
            self._active[row] = row == first or image.guided.start == 0
        self._stale = True

    def release(self, rows: Sequence[int]) -> None:
        """Free rows of an image. Its first row must go last, or together with all of them."""
        for row in rows:
            self._owner[row] = self._negative[row] = row
            self._in_use[row] = 0
            self._step_index[row] = 0
            self._table[row] = 0.0
            self._allocated[row] = self._active[row] = False
        self._stale = True

    def enable_guidance(self, image: ImageState) -> None:
        """Activate all rows of an image whose guidance interval begins."""
        for row in image.rows:
            self._active[row] = True
        self._stale = True

    def drop_guidance_row(self, image: ImageState) -> None:
        """Free the rows of an image whose guidance interval has ended, except the first."""
        first, *others = image.rows
        self._negative[first] = first
        self.release(others)
        image.rows = (first,)

    def latents(self, image: ImageState) -> torch.Tensor:
        """Return a view of an image's latents, float32 (C, h, w)."""
        return self._history[image.rows[0], image.step_index % HISTORY]

    def denoise(self, images: Sequence[ImageState]) -> None:
        """Evaluate the model once for every image and update its latents."""
        self._sample_noise([image for image in images if image.plan.uses_noise[image.step_index]])
        step_index = self._step_index[self._owner]
        line = self._table[self._owner, step_index]
        place = step_index % HISTORY
        inputs = _wide(line[:, _INPUT_SCALE]) * self._history[self._owner, place]
        output = self._predict(inputs, line[:, _TIMESTEP].contiguous())
        negative = torch.where(line[:, _GUIDED] > 0, self._negative, self._every)
        unguided = output[negative]
        self._history[self._every, HISTORY + place] = unguided + _wide(line[:, _GUIDANCE]) * (output - unguided)
        coefficients = line[:, _COEFFICIENTS:, None, None, None]
        self._history[self._every, (place + 1) % HISTORY] = (coefficients * self._history).sum(dim=1)
        self._step_index += self._in_use

    def _sample_noise(self, images: Sequence[ImageState]) -> None:
        """Store the next noise of each image, drawn from its own generator."""
        if images:
            shape = (1, *self._history.shape[2:])
            noise = torch.cat([torch.randn(shape, generator=image.generator) for image in images])
            rows = torch.tensor([image.rows[0] for image in images])
            self._history[send(rows, self._device), _NOISE] = send(noise, self._device)

    def _predict(self, inputs: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the model's output for all rows, float32 (count, C, h, w); zeros for rows that are not computed."""
        if self._stale:
            self._select_rows()
        if self._computed is None:
            return self.family.predict(inputs, timesteps, self._conditioning)
        output = torch.zeros_like(inputs)
        output[self._computed] = self.family.predict(
            inputs[self._computed], timesteps[self._computed], self._computed_conditioning
        )
        return output

    def _select_rows(self) -> None:
        """Select the active rows, and others up to the next batch size, and gather their conditioning."""
        self._stale = False
        active = [row for row, wanted in enumerate(self._active) if wanted]
        size = next(size for size in self._sizes if size >= len(active))
        if size == self.count:
            self._computed, self._computed_conditioning = None, self._conditioning
            return
        padding = [row for row, wanted in enumerate(self._active) if not wanted][: size - len(active)]
        self._computed = send(torch.tensor(sorted([*active, *padding])), self._device)
        self._computed_conditioning = {name: tensor[self._computed] for name, tensor in self._conditioning.items()}


def _wide(numbers: torch.Tensor) -> torch.Tensor:
    """Return (R,) as (R, 1, 1, 1)."""
    return numbers[:, None, None, None]
