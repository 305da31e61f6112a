"""How many steps are made on an image, as the pipelines of diffusers round them."""

from __future__ import annotations


def steps_made(steps: int, strength: float, *, flow: bool = False) -> int:
    """Return the steps that are made of ``steps`` at a strength from 0 to 1.

    Source: ``get_timesteps`` of diffusers' ``StableDiffusionImg2ImgPipeline``, and of ``FluxImg2ImgPipeline`` and
    ``StableDiffusion3Img2ImgPipeline`` for ``flow``, which round up.
    """
    if flow:
        return steps - int(max(steps - min(steps * strength, steps), 0))
    return min(int(steps * strength), steps)
