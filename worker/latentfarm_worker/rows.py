"""The rows of the batch and the images that own them: what is resident, and one denoising step of all of it.

A row is one line of the model's batch. An image's first row also keeps its past, in float32: the last HISTORY
samples x and model outputs m as rings (x[i] at place i mod HISTORY), and the step's noise. So a step moves no past
around; the coefficients are laid out to match the rings instead. An image's whole plan lies beside its past, and each
row counts its own calls: a step asks the host for nothing but the noise of schedulers that draw some.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.families.base import Family
from latentfarm_worker.plan import COLUMNS, HISTORY, Plan
from latentfarm_worker.text import Prompt, Tensors

_NOISE = COLUMNS - 1
#: columns of a row's table before the plan's coefficients
_TIMESTEP, _INPUT_SCALE, _GUIDANCE, _GUIDED, _COEFFICIENTS = range(5)
#: calls that a table has room for at first
_CALLS = 64


class Shape(NamedTuple):
    """What images in one batch have in common: the latents' height and width, and the chunks of their texts."""

    height: int
    width: int
    chunks: int = 1

    @property
    def area(self) -> int:
        """Latents of one channel."""
        return self.height * self.width


@dataclass(eq=False)
class Image:
    """One image in flight, or waiting with no rows yet.

    ``prompts``: what it shows and, with guidance, what it should not. ``rows``: one row of the batch for each of them;
    its latents and their past are kept in the first. ``call``: how many calls of the model are behind it. ``slots``:
    those of its shape when it began. ``passed``: how many later ones began before it. ``error``: why it has failed
    before its end. ``queued``, ``started``: by ``time.perf_counter()``, when it was leased and when it began.
    """

    job: Job
    plan: Plan
    shape: Shape
    width: int
    height: int
    prompts: tuple[Prompt, ...]
    rows: tuple[int, ...] = ()
    call: int = 0
    slots: int = 0
    passed: int = 0
    error: JobError | None = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator("cpu"))
    queued: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def truncated(self) -> tuple[str, ...]:
        """Which of its texts lost their end: ``prompt``, ``negative_prompt``."""
        names = ("prompt", "negative_prompt")
        return tuple(name for name, each in zip(names, self.prompts, strict=False) if each.tokens.truncated)

    @property
    def guided(self) -> range:
        """The calls of the model in which it has guidance."""
        if len(self.prompts) == 1:
            return range(0)
        start, stop = self.job.guidance_interval or (0.0, 1.0)
        # what was written with two decimals must not be rounded up for the sake of its last bit
        return range(ceil(start * self.plan.calls - 1e-9), ceil(stop * self.plan.calls - 1e-9))

    @property
    def calls_left(self) -> int:
        """How many calls of the model it still needs."""
        return 0 if self.error is not None else self.plan.calls - self.call

    @property
    def over(self) -> bool:
        """Whether all its steps are made, or no more will be."""
        return self.calls_left == 0

    def restart(self) -> None:
        """Forget what was done; the generator is seeded when it starts."""
        self.rows, self.call, self.timings = (), 0, {}

    def table(self) -> torch.Tensor:
        """Return a line of numbers for each call of the model, float32 (calls, 4 + COLUMNS)."""
        plan, scale, guided = self.plan, self.job.guidance_scale, self.guided
        lines = zip(plan.timesteps, plan.input_scales, plan.ring_coefficients, strict=True)
        return torch.tensor(
            [
                [timestep, input_scale, scale, float(call in guided), *ring]
                for call, (timestep, input_scale, ring) in enumerate(lines)
            ]
        )


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a host's tensor on the device, without waiting for what the device does meanwhile."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Rows:
    """Rows for latents of one ``shape``; ``free`` are those without an image.

    ``counts``: with how many rows the model may be called, in rising order; the last is how many there are. It sees
    those whose output is wanted, and as many others as the next of these counts asks for.
    """

    def __init__(self, family: Family, shape: Shape, counts: Sequence[int]) -> None:
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

    def take(self, image: Image, told: Sequence[Tensors], latents: torch.Tensor) -> None:
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

    def wake(self, image: Image) -> None:
        """Have the model see the rows of an image whose guidance begins."""
        self._resting.difference_update(image.rows)
        self._choose_seen()

    def shrink(self, image: Image) -> None:
        """Free the rows of an image that needs guidance no more, but for its first."""
        first, *others = image.rows
        self._other[first] = first
        self.give_back(others)
        image.rows = (first,)

    def latents(self, image: Image) -> torch.Tensor:
        """Return a view of an image's latents, (C, h, w)."""
        return self._past[image.rows[0], image.call % HISTORY]

    def denoise(self, images: Sequence[Image]) -> None:
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

    def _draw(self, images: Sequence[Image]) -> None:
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
