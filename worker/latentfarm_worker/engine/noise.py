"""The random numbers of one image, drawn in the order of diffusers' pipelines, ahead of the steps that use them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from latentfarm_worker.host_copy import pin, send

#: bytes of the noise of steps that one image holds on its device. An image with more draws the next block in a step:
#: those of 512 x 512 pixels after 500 draws, of 1024 x 1024 after 125
MAX_BYTES = 32 * 1024**2


class SampleDraws(NamedTuple):
    """How many samples of the VAE's distributions are drawn before the initial noise, and after it."""

    before: int = 0
    after: int = 0


class NoiseSource:
    """The initial noise of an image, and one noise for each evaluation whose plan draws one.

    The generator is a CPU's on every device, so that a seed gives the same image everywhere. Drawing takes time, so it
    is done where the object is made: on the prefetch thread, not within a step.

    Args:
        seed: the job's seed.
        shape: latent channels, height and width.
        count: evaluations that draw noise.
        device: the device of the steps.
        draws: noise for the VAE's samples of input images [default: none].
        skipped: noises that others draw first from a generator with the same seed.
        state: that of a generator which goes on [default: that after the seed].
        begins: whether the initial noise is drawn.

    Attributes:
        initial: the initial noise, float32 (C, h, w) on the host; empty if none is drawn.
        samples: the noise for the VAE's samples in the order of the draws, float32 (C, h, w) each, on the host.
    """

    def __init__(
        self,
        seed: int,
        shape: tuple[int, int, int],
        count: int,
        device: torch.device,
        *,
        draws: SampleDraws = SampleDraws(),  # noqa: B008 (it is immutable)
        skipped: int = 0,
        state: torch.Tensor | None = None,
        begins: bool = True,
    ) -> None:
        self._seed, self._shape, self._count, self._device = seed, shape, count, device
        self._draws, self._skipped, self._state, self._begins = draws, skipped, state, begins
        self._generator = torch.Generator("cpu")
        self._block: torch.Tensor
        self._begin()

    def restart(self) -> None:
        """Begin again with the first noise."""
        if self._first:
            self._begin()

    def skip_to(self, position: int) -> None:
        """Draw the noise of a step now, and all before it. ``position`` is less than the count, and never falls."""
        while position >= self._first + len(self._block):
            self._first += len(self._block)
            self._block = self._draw_block()

    def at(self, position: int) -> torch.Tensor:
        """Return a step's noise on the device, float32 (C, h, w). ``position`` is 0 or more, and never falls."""
        self.skip_to(position)
        if self._block.device != self._device:
            self._block = send(self._block, self._device)
        return self._block[position - self._first]

    def final_state(self) -> torch.Tensor:
        """Return the generator's state after the last noise of the steps."""
        generator = torch.Generator("cpu")
        generator.set_state(self._generator.get_state())
        for _ in range(self._first + len(self._block), self._count):
            torch.randn((1, *self._shape), generator=generator)
        return generator.get_state()

    def _begin(self) -> None:
        if self._state is None:
            self._generator.manual_seed(self._seed)
        else:
            self._generator.set_state(self._state)
        self._draw(self._skipped)
        before = self._draw(self._draws.before)
        self.initial = pin(self._draw(1)[0], self._device) if self._begins else torch.empty(0)
        self.samples = (*before, *self._draw(self._draws.after))
        #: the position of the first noise in the block
        self._first = 0
        self._block = self._draw_block()

    def _draw_block(self) -> torch.Tensor:
        size = 4 * self._shape[0] * self._shape[1] * self._shape[2]
        return pin(self._draw(min(self._count - self._first, max(1, MAX_BYTES // size))), self._device)

    def _draw(self, count: int) -> torch.Tensor:
        # one call for all would draw other numbers, because a call draws them in blocks of 16
        drawn = [torch.randn((1, *self._shape), generator=self._generator) for _ in range(count)]
        return torch.cat(drawn) if drawn else torch.empty((0, *self._shape))
