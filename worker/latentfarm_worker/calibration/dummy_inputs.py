"""Inputs for a call of the model whose output nobody wants: what a machine is measured with."""

from __future__ import annotations

from typing import NamedTuple

import torch

from latentfarm.job import DEFAULT_GUIDANCE
from latentfarm_worker.models.base import Family, LatentShape
from latentfarm_worker.models.text_encoder import Prompt, Tensors


class DummyInputs(NamedTuple):
    """Arguments of ``Family.predict``: latents (R, C, h, w), timesteps (R,) and what the texts tell, (R, ...) each."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    told: Tensors

    def first(self, rows: int) -> DummyInputs:
        """Return the first rows alone."""
        told = {name: tensor[:rows] for name, tensor in self.told.items()}
        return DummyInputs(self.latents[:rows], self.timesteps[:rows], told)


@torch.inference_mode()
def dummy_inputs(family: Family, shape: LatentShape, rows: int) -> DummyInputs:
    """Return so many rows of different noise at different timesteps; their text is the empty one."""
    draw = torch.Generator("cpu").manual_seed(0)
    latents = torch.randn((rows, family.latent_channels, shape.height, shape.width), generator=draw)
    timesteps = torch.randint(1, 999, (rows,), generator=draw).float()
    [text] = family.encode([Prompt(family.tokenize("").padded(shape.chunks))])
    sizes = family.size_tensors(shape.width * family.vae_scale_factor, shape.height * family.vae_scale_factor)
    told = {**text, **sizes, **family.guidance_tensors(DEFAULT_GUIDANCE)}
    return DummyInputs(
        latents.to(family.device),
        timesteps.to(family.device),
        {name: tensor.expand(rows, *tensor.shape).contiguous() for name, tensor in told.items()},
    )
