"""Dummy model inputs for warm-up and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from latentfarm.limits import DEFAULT_GUIDANCE
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.base import Family
from latentfarm_worker.models.text_encoder import Prompt, Tensors


class DummyInputs(NamedTuple):
    """Arguments of ``Family.predict``: latents (R, C, h, w), timesteps (R,), conditioning (R, ...) by name."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    conditioning: Tensors

    def first(self, rows: int) -> DummyInputs:
        """Return the first rows."""
        conditioning = {name: tensor[:rows] for name, tensor in self.conditioning.items()}
        return DummyInputs(self.latents[:rows], self.timesteps[:rows], conditioning)


@torch.inference_mode()
def dummy_inputs(family: Family, shape: LatentShape, rows: int) -> DummyInputs:
    """Return rows of different noise at different timesteps, all with the empty prompt; seeded."""
    generator = torch.Generator("cpu").manual_seed(0)
    latents = torch.randn((rows, family.latent_channels, shape.height, shape.width), generator=generator)
    timesteps = torch.randint(1, 999, (rows,), generator=generator).float()
    [text] = family.encode([Prompt(family.tokenize("").padded(shape.chunks))])
    size = family.size_conditioning(shape.width * family.vae_scale_factor, shape.height * family.vae_scale_factor)
    conditioning = {**text, **size, **family.guidance_conditioning(DEFAULT_GUIDANCE)}
    return DummyInputs(
        latents.to(family.device),
        timesteps.to(family.device),
        {name: tensor.expand(rows, *tensor.shape).contiguous() for name, tensor in conditioning.items()},
    )


def call_with_each_size(
    family: Family, shape: LatentShape, sizes: Iterable[int], *, on_forward: Callable[[], None] = lambda: None
) -> None:
    """Evaluate the model once with each batch size, so that later calls are as fast as they can be.

    The first call with a size may compile it. ``on_forward`` is called before each.
    """
    ordered = sorted(sizes)
    inputs = dummy_inputs(family, shape, ordered[-1])
    for size in ordered:
        on_forward()
        family.predict(*inputs.first(size))
