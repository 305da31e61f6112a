"""Dummy model inputs for warm-up and calibration."""

from __future__ import annotations

from typing import NamedTuple

import torch

from latentfarm.limits import DEFAULT_GUIDANCE
from latentfarm_worker.host_copy import send
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.base import Family
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors


class DummyInputs(NamedTuple):
    """Arguments of ``Family.predict``: latents (R, C, h, w), timesteps (R,), conditioning (R, ...) by name."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    conditioning: Tensors


@torch.inference_mode()
def dummy_inputs(family: Family, shape: LatentShape, rows: int) -> DummyInputs:
    """Return rows of different noise at different timesteps, all with the empty prompt; seeded."""
    generator = torch.Generator("cpu").manual_seed(0)
    latents = torch.randn((rows, family.latent_channels, shape.height, shape.width), generator=generator)
    timesteps = torch.randint(1, 999, (rows,), generator=generator).float()
    [text] = family.encoder_placement.encode(family.encode, [Prompt(family.tokenize(""))])
    factor = family.vae_scale_factor
    common = family.row_conditioning(shape.width * factor, shape.height * factor, DEFAULT_GUIDANCE)
    conditioning = {**text, **{name: send(tensor, family.device) for name, tensor in common.items()}}
    return DummyInputs(
        latents.to(family.device),
        timesteps.to(family.device),
        {name: tensor.expand(rows, *tensor.shape).contiguous() for name, tensor in conditioning.items()},
    )
