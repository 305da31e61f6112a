"""The rows of the batch and the images that own them: what is resident, and one denoising step of all of it.

A row is one line of the model's batch. The first row of an image also keeps its past, in float32: the last
HISTORY samples x and model outputs m as rings (x[i] at place i mod HISTORY), and the step's noise. So a step
moves no past around; the coefficients are laid out to match the rings instead.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.families.base import Family
from latentfarm_worker.plan import COLUMNS, HISTORY, Plan

_NOISE = COLUMNS - 1


@dataclass(eq=False)
class Image:
    """One image in flight, or waiting with no rows yet.

    ``rows``: its rows of the batch: (unconditional, conditional), or only the second without guidance; its
    latents and their past are kept in the first. ``call``: how many calls of the model are behind it. ``slots``:
    those of its shape when it began. ``error``: why it has failed before its end.
    """

    job: Job
    plan: Plan
    latent_height: int
    latent_width: int
    rows: tuple[int, ...] = ()
    call: int = 0
    slots: int = 0
    error: JobError | None = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator("cpu"))
    prompt_truncated: bool = False
    started: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def width_in_rows(self) -> int:
        """How many rows it takes."""
        return 2 if self.job.guided else 1

    @property
    def over(self) -> bool:
        """Whether all its steps are made, or no more will be."""
        return self.call == self.plan.calls or self.error is not None

    def restart(self) -> None:
        """Forget what was done; the generator is seeded when it starts."""
        self.rows, self.call, self.timings = (), 0, {}


class Rows:
    """``count`` rows for latents of one ``shape`` (h, w); ``free`` are the rows without an image."""

    def __init__(self, family: Family, shape: tuple[int, int], count: int) -> None:
        self.family = family
        self.shape = shape
        self.count = count
        self.free = list(range(count))
        latents = (family.latent_channels, *shape)
        self._past = torch.zeros((count, COLUMNS, *latents), device=family.device)
        self._text: torch.Tensor | None = None  # (count, 77, D); D is known with the first text

    def take(self, texts: Sequence[torch.Tensor], latents: torch.Tensor) -> tuple[int, ...]:
        """Give an image a row for each of its texts (77, D) and put its first latents (C, h, w) in place."""
        rows = tuple(self.free[: len(texts)])
        del self.free[: len(texts)]
        if self._text is None:
            self._text = torch.zeros((self.count, *texts[0].shape), dtype=texts[0].dtype, device=self.family.device)
        for row, text in zip(rows, texts, strict=True):
            self._text[row] = text
        self._past[list(rows)] = 0.0
        self._past[rows[0], 0] = latents.to(self._past.device)
        return rows

    def give_back(self, rows: Sequence[int]) -> None:
        """Free an image's rows."""
        for row in rows:
            bisect.insort(self.free, row)

    def latents(self, image: Image) -> torch.Tensor:
        """Return a view of an image's latents, (C, h, w)."""
        return self._past[image.rows[0], image.call % HISTORY]

    def denoise(self, images: Sequence[Image], *, only_used: bool) -> None:
        """Make one call of the model for every image and the update of its latents.

        ``only_used``: leave the empty rows out instead of filling them up.
        """
        table = _Table(images, self.count, self._past.device)
        used = torch.tensor(sorted(row for image in images for row in image.rows), device=self._past.device)
        output = self._predict(table, used if only_used else None)
        for image in images:
            if image.plan.draws[image.call]:
                noise = torch.randn((1, *self._past.shape[2:]), generator=image.generator)
                self._past[image.rows[0], _NOISE] = noise[0].to(self._past.device)
        every = torch.arange(self.count, device=self._past.device)
        guided = output + table.guidance * (output[table.conditional] - output)
        self._past[every, HISTORY + table.place] = guided
        self._past[every, table.next_place] = (table.coefficients * self._past).sum(dim=1)

    def _predict(self, table: _Table, used: torch.Tensor | None) -> torch.Tensor:
        """Return the model's output for all rows, float32 (count, C, h, w); zeros for rows left out."""
        assert self._text is not None  # noqa: S101 (take comes first)
        inputs = table.input_scale * self._past[table.owner, table.place]
        if used is None:
            return self.family.predict(inputs, table.timestep, self._text)
        output = torch.zeros_like(inputs)
        output[used] = self.family.predict(inputs[used], table.timestep[used], self._text[used])
        return output


class _Table:
    """The numbers of one step, a line for each row; rows that no image owns get zeros and themselves.

    ``owner``: the row with the image's past. ``conditional``: the row with the guided half. ``place``: the
    past's ring place of x[i] and m[i]. ``next_place``: that of x[i+1].
    """

    def __init__(self, images: Sequence[Image], count: int, device: torch.device) -> None:
        integers = [[row, row, 0, 1] for row in range(count)]
        numbers = [[0.0] * (3 + COLUMNS) for _ in range(count)]
        for image in images:
            plan, call = image.plan, image.call
            first, last = image.rows[0], image.rows[-1]
            for row in image.rows:
                integers[row] = [first, last, call % HISTORY, (call + 1) % HISTORY]
                numbers[row][:3] = [plan.timesteps[call], plan.input_scales[call], image.job.guidance_scale]
            numbers[first][3:] = plan.ring_coefficients[call]
        on_device = torch.tensor(integers).to(device, non_blocking=True)
        self.owner, self.conditional, self.place, self.next_place = on_device.unbind(dim=1)
        values = torch.tensor(numbers, dtype=torch.float32).to(device, non_blocking=True)
        self.timestep = values[:, 0].contiguous()
        self.input_scale = values[:, 1, None, None, None]
        self.guidance = values[:, 2, None, None, None]
        self.coefficients = values[:, 3:, None, None, None]
