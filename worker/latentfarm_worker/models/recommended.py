"""The steps and the guidance scale of jobs that set none, by what a model's configs say about it.

A table of sources is in docs/how-to/choose-a-model.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentfarm.limits import DEFAULT_GUIDANCE, DEFAULT_STEPS

_Config = Mapping[str, Any]

#: input channels of FLUX.1's transformer: 16 of its VAE, packed 2x2
_FLUX_CHANNELS = 64


@dataclass(frozen=True)
class Recommended:
    """The denoising steps and the guidance scale of a job that sets none; a scale up to 1 is no guidance."""

    steps: int = DEFAULT_STEPS
    guidance_scale: float = DEFAULT_GUIDANCE


#: of pipelines whose models are all alike
_OF_PIPELINES = {"ChromaPipeline": Recommended(35, 5.0), "PixArtSigmaPipeline": Recommended(20, 4.5)}


def recommend(pipeline: str, *, index: _Config, denoiser: _Config, scheduler: _Config, name: str = "") -> Recommended:
    """Return what a model's authors or its diffusers pipeline recommend; else 25 steps with a scale of 7.5.

    Args:
        pipeline: the diffusers pipeline, such as ``FluxPipeline``.
        index: model_index.json, which may have ``is_distilled`` and ``_name_or_path``.
        denoiser: the config of the U-Net or the transformer.
        scheduler: the scheduler's config, with its ``_class_name``.
        name: the folder, file or hub id of the model. Some turbo models have the configs of their base model, so that
            only ``turbo`` in the name distinguishes them.

    """
    # options of a source follow a comma: its base may be another model
    labels = (name.partition(",")[0], str(index.get("_name_or_path") or ""))
    turbo = any("turbo" in Path(label).name.lower() for label in labels)
    match pipeline:
        case "StableDiffusion3Pipeline":
            return _stable_diffusion_3(denoiser, turbo=turbo)
        case "FluxPipeline":
            return _flux(denoiser)
        case "Flux2KleinPipeline":
            return Recommended(4, 1.0) if index.get("is_distilled") else Recommended(50, 4.0)
        case "ZImagePipeline":
            return Recommended(8, 0.0) if turbo else Recommended(50, 5.0)
        case "StableDiffusionPipeline" | "StableDiffusionXLPipeline":
            return _stable_diffusion(denoiser, scheduler, turbo=turbo)
    return _OF_PIPELINES.get(pipeline, Recommended())


def _stable_diffusion(denoiser: _Config, scheduler: _Config, *, turbo: bool) -> Recommended:
    if denoiser.get("time_cond_proj_dim") is not None:
        # a latent consistency model with embedded guidance (arXiv 2310.04378)
        return Recommended(4, 8.5)
    # SD Turbo and XL Turbo (arXiv 2311.17042); merges named after them need more steps, and have other schedulers
    if turbo and scheduler.get("timestep_spacing") == "trailing":
        return Recommended(1, 0.0)
    return Recommended()


def _stable_diffusion_3(denoiser: _Config, *, turbo: bool) -> Recommended:
    if turbo:
        return Recommended(4, 0.0)
    if not denoiser.get("qk_norm"):
        return Recommended(28, 7.0)
    # 3.5: only medium has layers of dual attention
    return Recommended(40, 4.5) if denoiser.get("dual_attention_layers") else Recommended(28, 3.5)


def _flux(denoiser: _Config) -> Recommended:
    if denoiser.get("guidance_embeds"):
        return Recommended(28, 3.5)
    # schnell takes no guidance; the bundled mini-flow, with a VAE of 4 channels, is not distilled
    return Recommended(4, 0.0) if denoiser.get("in_channels", _FLUX_CHANNELS) == _FLUX_CHANNELS else Recommended(8, 3.0)
