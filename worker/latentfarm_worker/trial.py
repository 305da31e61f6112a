"""Inputs for a call of the model whose output nobody wants: what a machine is measured with."""

from __future__ import annotations

from typing import NamedTuple

import torch

from latentfarm.job import DEFAULT_GUIDANCE
from latentfarm_worker.families.base import Family
from latentfarm_worker.rows import Shape
from latentfarm_worker.text import Prompt, Tensors


class Trial(NamedTuple):
    """Arguments of ``Family.predict``: latents (R, C, h, w), timesteps (R,) and what the texts tell, (R, ...) each."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    told: Tensors

    def first(self, rows: int) -> Trial:
        """Return the first rows alone."""
        told = {name: tensor[:rows] for name, tensor in self.told.items()}
        return Trial(self.latents[:rows], self.timesteps[:rows], told)


def native_shape(family: Family) -> Shape:
    """Return the shape of the family's native size, for texts of one chunk."""
    return Shape(family.native_height // family.vae_scale_factor, family.native_width // family.vae_scale_factor)


@torch.inference_mode()
def trial(family: Family, shape: Shape, rows: int) -> Trial:
    """Return so many rows of different noise at different timesteps; their text is the empty one."""
    draw = torch.Generator("cpu").manual_seed(0)
    latents = torch.randn((rows, family.latent_channels, shape.height, shape.width), generator=draw)
    timesteps = torch.randint(1, 999, (rows,), generator=draw).float()
    [text] = family.encode([Prompt(family.tokenize("").padded(shape.chunks))])
    sizes = family.size_tensors(shape.width * family.vae_scale_factor, shape.height * family.vae_scale_factor)
    told = {**text, **sizes, **family.guidance_tensors(DEFAULT_GUIDANCE)}
    return Trial(
        latents.to(family.device),
        timesteps.to(family.device),
        {name: tensor.expand(rows, *tensor.shape).contiguous() for name, tensor in told.items()},
    )
